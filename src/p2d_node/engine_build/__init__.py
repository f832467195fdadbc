"""Builds, verifies and removes engines of the vision encoder."""
