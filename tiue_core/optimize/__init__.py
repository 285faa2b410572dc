"""Faster with the same pictures: how a student is run, not what it computes."""
