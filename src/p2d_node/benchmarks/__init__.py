"""Benchmarks that users run on their own machine: token selection and the language model."""
