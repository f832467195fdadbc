"""From pixel_values to visual tokens."""
