"""The lock of the engine folder, and the folders that builds work in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, ExitStack
import os
from pathlib import Path
import shutil

from p2d_node.durable_files import refuse_link, write_faults
from p2d_node.whole_folders import find_leftovers, locked, new_folder

UNFINISHED_PREFIX = '.building-'
"""Nothing loads an engine from a folder whose name begins with a dot."""

OTHERS_MAY_NOT_WRITE = 0o022


@contextmanager
def engine_lock(engine_dir: Path) -> Iterator[None]:
    """Create the engine folder and hold its lock.

    Until it is released this process writes files that only their owner may change: others are
    not loaded.

    Raises:
        ConfigError: The folder cannot be created or written, or another process holds the lock.
    """
    busy = (
        f'engine_dir: another build works in {engine_dir}; wait until it ends, or name another '
        'folder'
    )
    with ExitStack() as stack:
        before = os.umask(OTHERS_MAY_NOT_WRITE)
        stack.callback(os.umask, before)
        os.umask(before | OTHERS_MAY_NOT_WRITE)
        with write_faults(f'engine_dir: {engine_dir}', 'name another folder'):
            engine_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
            stack.enter_context(locked(engine_dir, busy))
        yield


@contextmanager
def new_engine_folder(model_dir: Path) -> Iterator[Path]:
    """Create an empty folder for a build; `whole_folders.publish` gives it its final name.

    Call it with the engine lock held: folders that killed builds left are removed.

    Args:
        model_dir: The folder of the model's engines; created if missing.

    Raises:
        ConfigError: It is a link, which may lead to a folder of other files.
    """
    refuse_link(model_dir, 'engine_dir')
    model_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
    remove_unfinished(model_dir)
    with new_folder(model_dir, UNFINISHED_PREFIX) as folder:
        yield folder


def remove_unfinished(model_dir: Path) -> None:
    """Remove the folders that killed builds left in the folder of a model."""
    for path in find_leftovers(model_dir, UNFINISHED_PREFIX):
        shutil.rmtree(path, ignore_errors=True)
