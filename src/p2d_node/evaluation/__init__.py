"""Answers to the questions of benchmarks, and their scores."""
