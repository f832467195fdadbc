"""Files that a power cut leaves whole: with their old content, or with the new."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import errno
import json
import os
from pathlib import Path
import secrets
import tempfile
from typing import Any

from p2d_node.errors import ConfigError


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step: a reader sees the old content or the new."""
    write_bytes(path, (json.dumps(content, indent=2) + '\n').encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file in one step."""
    unfinished = path.with_name(f'.{path.name}-{secrets.token_hex(4)}')
    try:
        with unfinished.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def write_faults(what: str, remedy: str) -> Iterator[None]:
    """Name what could not be written where the system refuses.

    Args:
        what: The option that says where, and the path.
        remedy: What its user can do.

    Raises:
        ConfigError: In place of OSError.
    """
    try:
        yield
    except OSError as err:
        raise ConfigError(f'{what} cannot be written: {err.strerror or err}; {remedy}') from err


def require_writable(path: Path) -> None:
    """Make the folder of a file, and make sure that the file could be written there now.

    Raises:
        OSError: It could not.
    """
    for number, in_the_way in (
        (errno.ENOTDIR, path.parent.is_file()),
        (errno.EISDIR, path.is_dir()),
    ):
        if in_the_way:
            raise OSError(number, os.strerror(number), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix='.'):
        pass


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Make every file in a folder survive a power cut, readable by all, writable by its owner."""
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open('rb') as file:
            os.fsync(file.fileno())
    sync_folder(folder)
