"""Folders that are complete or absent, whenever the process or the power ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import shutil

from filelock import FileLock, Timeout
from p2d_node.durable_files import sync_files, sync_folder
from p2d_node.errors import ConfigError

LOCK_FILE = '.lock'


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
def new_folder(unfinished: Path) -> Iterator[Path]:
    """Create an empty folder to work in; it is removed at the end unless `publish` renames it.

    Call it with a lock held. A folder of the same name, which a killed process left, is removed.

    Raises:
        OSError: The folder cannot be created.
    """
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True, mode=0o755)
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def publish(unfinished: Path, final: Path) -> Path:
    """Flush a finished folder to the disk and rename it in one step.

    Returns:
        `final`.

    Raises:
        OSError: The files cannot be flushed, or `final` exists.
    """
    sync_files(unfinished)
    unfinished.rename(final)
    sync_folder(final.parent)
    return final
