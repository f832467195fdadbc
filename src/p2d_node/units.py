"""Nanoseconds per unit of time, and the range of stamps, which count in whole nanoseconds."""

from __future__ import annotations

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

MAX_STAMP_NS = (2**31 - 1) * NS_PER_S
"""The last time that a ROS stamp can hold, nanoseconds since the epoch."""
