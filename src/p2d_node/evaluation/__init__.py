"""Measuring what the pipeline does: its time and what it keeps."""
