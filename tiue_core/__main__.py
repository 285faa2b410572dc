"""``python -m tiue_core``: the ``tiue`` command, for launchers that want a module."""

from .cli import main

main()
