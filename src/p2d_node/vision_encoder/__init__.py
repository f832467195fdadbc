"""Vision encoders: from camera frames or pixel_values to visual tokens."""
