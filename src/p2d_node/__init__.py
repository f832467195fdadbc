"""Prune2Drive on the vehicle: driving answers from six cameras with few visual tokens."""

__version__ = '0.1.0'
