"""Engine folders that are either wholly there or not at all, whenever the power goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import fcntl
from pathlib import Path
import secrets
import shutil

from p2d_node.durable_files import sync_files, sync_folder, write_faults
from p2d_node.errors import ConfigError

LOCK_FILE = '.lock'
UNFINISHED_PREFIX = '.building-'


@contextmanager
def locked(engine_dir: Path) -> Iterator[None]:
    """Hold the engine folder's lock; the system frees it when the process ends, however it ends.

    Raises:
        ConfigError: The folder cannot be made or written, or another process holds the lock.
    """
    with write_faults(f'encoder.engine_dir: {engine_dir}', 'name another with --engine-dir'):
        engine_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
        file = (engine_dir / LOCK_FILE).open('a')
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise ConfigError(
                f'encoder.engine_dir: another build works in {engine_dir}; wait for its end, or '
                'name another folder with --engine-dir'
            ) from err
        yield


@contextmanager
def new_folder(parent: Path) -> Iterator[Path]:
    """Yield an unfinished folder in `parent`; rename it with `publish` to keep it.

    What earlier builds left behind is removed. Call it with the lock held.
    """
    parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    remove_unfinished(parent)
    folder = parent / f'{UNFINISHED_PREFIX}{secrets.token_hex(4)}'
    folder.mkdir(mode=0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(parent: Path) -> None:
    """Remove what builds that did not finish left in `parent`."""
    for path in parent.glob(f'{UNFINISHED_PREFIX}*'):
        shutil.rmtree(path, ignore_errors=True)


def publish(folder: Path, name: str) -> Path:
    """Give a finished folder its name, in one step; returns its new path."""
    sync_files(folder)
    final = folder.with_name(name)
    folder.rename(final)
    sync_folder(final.parent)
    return final
