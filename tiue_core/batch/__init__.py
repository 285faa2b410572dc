"""Prompt lists to finished folders.

    rows    = read_list("prompts.csv")                    # lists.py, schema.py
    jobs    = RunOptions(path).jobs(settings)             # options.py, wildcards.py
    results = Run(jobs, folder, painter)                  # engine.py: iterate, cancel, count

A bad row is a value (`BadRow`), not an exception: it travels along with the good ones, and whoever
iterates decides what to make of it.
"""
