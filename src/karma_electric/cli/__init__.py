"""The `karma` command, one module per group of verbs; heavy imports stay inside the functions."""
