"""Keeps the memory of a long-running process small: settings of glibc's malloc."""

from __future__ import annotations

import ctypes

M_ARENA_MAX = -8
"""Of glibc's malloc.h."""

MAX_ARENAS = 2


def share_freed_memory() -> None:
    """Let threads share freed memory: glibc gives each an arena of its own otherwise.

    Call it before threads start. Without glibc it does nothing.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        libc.mallopt(M_ARENA_MAX, MAX_ARENAS)


def return_freed_memory() -> None:
    """Return freed memory to the system, which takes some milliseconds."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):
        libc.malloc_trim(0)
