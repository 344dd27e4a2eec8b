"""The roof: composes every part into one process, and the command line."""
