"""What can be trained: one task a module, each with the hooks that the loop calls."""
