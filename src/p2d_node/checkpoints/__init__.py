"""Checkpoint folders: opening, importing and fingerprinting them."""
