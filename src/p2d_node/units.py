"""Nanoseconds per unit of time. Stamps and clocks count in whole nanoseconds."""

from __future__ import annotations

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
