"""Benchmarks of single stages: times and operations of a model with random weights."""
