"""A full disk, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import resource


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size_bytes`, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
