"""Answered sweeps come in; recordings of rerun and messages for Foxglove go out."""
