"""Keeps the memory of a long-running process small: settings of glibc's malloc."""

from __future__ import annotations

import ctypes

M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3
"""Of glibc's malloc.h."""

MAX_ARENAS = 2

MMAP_THRESHOLD_BYTES = 4 << 20
"""Larger blocks go back to the system when they are freed. glibc would raise the threshold to the
largest block that was ever freed, and keep what is smaller."""


def share_freed_memory() -> None:
    """Let threads share freed memory, and have large blocks go back to the system.

    glibc gives each thread an arena of its own otherwise. Call it before threads start. Without
    glibc it does nothing.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        libc.mallopt(M_ARENA_MAX, MAX_ARENAS)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def return_freed_memory() -> None:
    """Return freed memory to the system, which takes some milliseconds."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):
        libc.malloc_trim(0)
