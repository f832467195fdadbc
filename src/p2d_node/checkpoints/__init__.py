"""Checkpoint folders: where they are, what they hold, and how foreign ones are imported."""
