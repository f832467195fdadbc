"""A checkpoint folder that is either wholly there or not at all, whenever the power goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import fcntl
import os
from pathlib import Path
import shutil

from p2d_node.durable_files import sync_files, sync_folder
from p2d_node.errors import ConfigError
from safetensors import SafetensorError

SPARE_BYTES = 64 << 20
"""Disk space beside the weights: tokenizer, settings, index."""


@contextmanager
def new_checkpoint_folder(out: Path, num_bytes: int) -> Iterator[Path]:
    """Yield an unfinished folder beside `out`, which gets that name if all goes well.

    What an import that was killed left behind is removed. Only one import can work on `out`.

    Args:
        out: The folder to make.
        num_bytes: What the weights will take.

    Raises:
        ConfigError: `out` exists or cannot be written, or the disk is full.
    """
    _check_room(out, num_bytes)
    unfinished = out.parent / f'.{out.name}.importing'
    try:
        unfinished.mkdir(exist_ok=True)
        lock = _lock(unfinished)
        try:
            _empty(unfinished)
            yield unfinished
            sync_files(unfinished)  # safetensors makes files that nobody else can read
            unfinished.rename(out)
            sync_folder(out.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            os.close(lock)
    except (OSError, SafetensorError) as err:
        raise ConfigError(
            f'out: {out} cannot be written: {err}; free disk space or name another folder'
        ) from err


def _check_room(out: Path, num_bytes: int) -> None:
    if out.exists():
        raise ConfigError(f'out: {out} exists; name another folder, or remove it first')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
    except OSError as err:
        raise ConfigError(f'out: {out.parent} cannot be written: {err.strerror}') from err
    needed = num_bytes + SPARE_BYTES
    if free < needed:
        raise ConfigError(
            f'out: {out.parent} has {free / 1e9:.1f} GB free, needed: {needed / 1e9:.1f} GB; '
            'free disk space or name another folder'
        )


def _lock(folder: Path) -> int:
    """Lock a folder; the system frees the lock when the process ends, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        os.close(descriptor)
        raise ConfigError(
            f'out: another import works in {folder}; wait for its end, or name another folder'
        ) from err
    return descriptor


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
