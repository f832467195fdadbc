"""The folder that an import writes: it appears under its name when it is complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import shutil

from p2d_node.durable_files import write_faults
from p2d_node.errors import ConfigError
from p2d_node.whole_folders import find_leftovers, locked, new_folder, publish
from safetensors import SafetensorError

SPARE_BYTES = 64 << 20
"""Disk space for tokenizer, settings and index."""

NEXT_STEP = 'free disk space or name another folder'


@contextmanager
def new_checkpoint_folder(out: Path, num_bytes: int) -> Iterator[Path]:
    """Yield an empty folder beside `out`; at the end it is renamed to `out`.

    If the body raises, nothing is left. If the process is killed, a folder `.<out>.importing-*`
    is left beside `out`, and the next import removes it.

    Args:
        out: The folder to create.
        num_bytes: Size of the weights.

    Raises:
        ConfigError: `out` exists or cannot be written, the disk is full, or another import writes
            the same folder.
    """
    if out.exists():
        raise ConfigError(f'out: {out} exists; name another folder, or remove it first')
    with write_faults(f'out: {out}', NEXT_STEP), _safetensors_faults():
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_space(out.parent, num_bytes)
        prefix = f'.{out.name}.importing-'
        for workspace in find_leftovers(out.parent, prefix):
            with locked(workspace, _busy(workspace)):
                shutil.rmtree(workspace, ignore_errors=True)
        with (
            new_folder(out.parent, prefix) as workspace,
            locked(workspace, _busy(workspace)),
            new_folder(workspace, 'checkpoint-') as folder,
        ):
            yield folder
            publish(folder, out)


def _busy(workspace: Path) -> str:
    return f'out: another import works in {workspace}; wait until it ends, or name another folder'


def _check_space(parent: Path, num_bytes: int) -> None:
    free, needed = shutil.disk_usage(parent).free, num_bytes + SPARE_BYTES
    if free < needed:
        raise ConfigError(
            f'out: {parent} has {free / 1e9:.1f} GB free, needed: {needed / 1e9:.1f} GB; '
            f'{NEXT_STEP}'
        )


@contextmanager
def _safetensors_faults() -> Iterator[None]:
    """Safetensors reports a full disk in an error class of its own."""
    try:
        yield
    except SafetensorError as err:
        raise OSError(str(err)) from err
