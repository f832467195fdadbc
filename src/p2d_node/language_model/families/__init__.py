"""One file per model family: how its checkpoints load, see and are asked."""
