"""Removes old engines, the newest of each kind kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
import shutil

from p2d_node.engine_build.atomic import locked, remove_unfinished, UNFINISHED_PREFIX
from p2d_node.errors import ConfigError, EngineMismatchError
from p2d_node.vision_encoder.engine_store import list_all_engines
from p2d_node.vision_encoder.manifest import read_manifest


def clean_engines(engine_dir: Path, keep: int, *, dry_run: bool = False) -> list[Path]:
    """Remove all but the newest `keep` engines of every kind, and what cut builds left.

    Engines of one kind agree in model, backend, precision, input and number of cameras.

    Args:
        engine_dir: The engine folder.
        keep: Engines kept of each kind, at least 1.
        dry_run: Only say what would go.

    Returns:
        The engine folders that are gone, or would go.

    Raises:
        ConfigError: `keep` out of range, or the folder cannot be written.
    """
    if keep < 1:
        raise ConfigError(f'--keep: got {keep}, allowed: 1 or more')
    if not engine_dir.is_dir():
        raise ConfigError(f'--engine-dir: got {str(engine_dir)!r}, which is not a folder')
    with locked(engine_dir):
        old = _old_engines(engine_dir, keep)
        if not dry_run:
            for folder in old:
                _remove(folder)
            for model in engine_dir.iterdir():
                remove_unfinished(model)
    return old


def _old_engines(engine_dir: Path, keep: int) -> list[Path]:
    old: list[Path] = []
    num_newer: Counter[tuple[str, str, int | None]] = Counter()
    for folder in list_all_engines(engine_dir):
        model, kind = folder.parent.name, folder.name.rsplit('-', 2)[0]
        num_views = _num_views(folder)
        if num_newer[model, kind, num_views] >= keep:
            old.append(folder)
        # One that does not say its number of cameras is replaced by newer ones for any number.
        num_newer.update({(model, kind, num_views), (model, kind, None)})
    return old


def _num_views(folder: Path) -> int | None:
    try:
        return read_manifest(folder).num_views
    except EngineMismatchError:
        return None


def _remove(folder: Path) -> None:
    # The new name makes it no engine at once, even if the removal is cut.
    doomed = folder.with_name(f'{UNFINISHED_PREFIX}{folder.name}')
    folder.rename(doomed)
    shutil.rmtree(doomed)
