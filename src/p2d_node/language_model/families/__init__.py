"""Model families: one file per family, and the registry that loads them."""
