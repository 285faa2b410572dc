"""The machinery behind the nodes. Imported when a node first runs, never at start-up: it needs
diffusers, whose import takes longer than all nodes together may take.
"""
