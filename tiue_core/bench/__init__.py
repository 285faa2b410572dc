"""How fast, beside what else: one table, one run, all systems in turn."""
