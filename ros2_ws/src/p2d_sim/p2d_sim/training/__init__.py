"""How p2d-mini is trained: data, model, losses, stages, evaluation."""
