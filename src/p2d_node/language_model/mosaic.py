"""What config.json says about models that see all views stitched into one picture."""

MOSAIC_KEY = 'p2d_mosaic'
"""Rows of camera names, top to bottom, each left to right; absent where views stay apart."""
