"""Systems to compare students with: every row of the paper's tables, by name.

`registry` says what each is, and imports nothing heavy; `find` brings the files; `load` makes a
`SystemPipeline` that is called like a student; `recipes` paints what diffusers has no sampler for.
"""
