"""Commands: one module of functions for each group."""
