"""Folders that are complete or absent, whenever the process or the power ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import shutil
import tempfile

from filelock import FileLock, Timeout
from p2d_node.durable_files import sync_files, sync_folder
from p2d_node.errors import ConfigError

LOCK_FILE = '.lock'

MARKER_FILE = '.p2d-unfinished'
"""In every folder of `new_folder` until it is published."""


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Hold the lock of a folder; the system releases it when the process ends.

    The lock file stays in the folder. If it is a symbolic link, the link is not followed.

    Args:
        folder: An existing folder; the file `.lock` in it is locked.
        busy: The message if another process holds the lock.

    Raises:
        ConfigError: Another process holds the lock.
        OSError: The lock file cannot be opened.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as err:
        raise ConfigError(busy) from err
    try:
        yield
    finally:
        lock.release()


@contextmanager
def new_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Create an empty folder to work in; it is removed at the end unless `publish` renames it.

    Its name cannot be guessed: in a shared folder nobody can have put a link in its place.

    Args:
        parent: An existing folder.
        prefix: Beginning of its name.

    Raises:
        OSError: The folder cannot be created.
    """
    unfinished = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        (unfinished / MARKER_FILE).touch()
        unfinished.chmod(0o755)
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def find_leftovers(parent: Path, prefix: str) -> list[Path]:
    """Return the folders of `new_folder` that killed processes, or running ones, have left.

    Only real folders of this user with the marker count; links are not followed.
    """
    if parent.is_symlink() or not parent.is_dir():
        return []
    return [
        path
        for path in parent.iterdir()
        if path.name.startswith(prefix)
        and not path.is_symlink()
        and path.is_dir()
        and path.stat().st_uid == os.geteuid()
        and (path / MARKER_FILE).is_file()
    ]


def publish(unfinished: Path, final: Path) -> Path:
    """Flush a finished folder to the disk and rename it in one step.

    Returns:
        `final`.

    Raises:
        OSError: The files cannot be flushed, or `final` exists.
    """
    (unfinished / MARKER_FILE).unlink(missing_ok=True)
    sync_files(unfinished)
    unfinished.rename(final)
    sync_folder(final.parent)
    return final
