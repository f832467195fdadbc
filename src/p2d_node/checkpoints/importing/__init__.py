"""Checkpoints in the formats of their authors come in; folders that the families load go out."""
