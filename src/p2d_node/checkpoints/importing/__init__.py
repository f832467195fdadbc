"""Imports of published checkpoints: from the formats of their authors to Hugging Face format."""
