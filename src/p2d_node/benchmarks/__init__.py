"""Benchmarks that users run on their own machine, and computed times for other machines."""
