"""Tells files whose bytes are on the disk from those that only claim a size."""

from __future__ import annotations

import errno
import os
from pathlib import Path

BLOCK_BYTES = 512
"""Unit of `st_blocks`, on every Linux file system."""

SPARSE = 4
"""A file system may compress weights, but not to a quarter."""


def is_sparse(descriptor: int, status: os.stat_result) -> bool:
    """Return whether a file takes far less of the disk than its size.

    Args:
        descriptor: The file, open for reading; the place that is read next becomes its beginning.
        status: What `os.fstat` says of it.
    """
    if status.st_blocks == 0 and status.st_size > 0:
        return _is_one_hole(descriptor)
    return SPARSE * BLOCK_BYTES * status.st_blocks < status.st_size


def stored_bytes(path: Path) -> int:
    """Return how many bytes of a file are on the disk; 0 if it is missing or no file.

    Raises:
        OSError: It cannot be opened.
    """
    if not path.is_file():
        return 0
    status = path.stat()
    if status.st_blocks > 0:
        return min(status.st_size, BLOCK_BYTES * status.st_blocks)
    with path.open('rb') as file:
        return 0 if _is_one_hole(file.fileno()) else status.st_size


def _is_one_hole(descriptor: int) -> bool:
    """Return whether nothing of a file is on the disk.

    A file system that counts no blocks says 0 of every file, so it is asked where the data is.
    """
    try:
        os.lseek(descriptor, 0, os.SEEK_DATA)
    except OSError as err:
        return err.errno == errno.ENXIO
    os.lseek(descriptor, 0, os.SEEK_SET)
    return False
