"""The command line `p2d` and its verbs."""
