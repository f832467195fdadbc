"""Training and evaluation of p2d-mini: batches, model, losses, stages, scores."""
