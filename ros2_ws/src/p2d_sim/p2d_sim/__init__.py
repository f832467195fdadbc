"""A synthetic six-camera world: pictures, ground truth, and the training of p2d-mini."""
