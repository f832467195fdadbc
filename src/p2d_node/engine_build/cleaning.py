"""Removes old engines and keeps the newest of each kind.

Only real folders with a valid manifest are removed: a folder whose name looks like an engine's may
be anything, and a link may lead anywhere.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
import secrets
import shutil

from p2d_node.durable_files import write_faults
from p2d_node.engine_build.engine_folders import (
    engine_lock,
    remove_unfinished,
    UNFINISHED_PREFIX,
)
from p2d_node.errors import ConfigError, EngineMismatchError
from p2d_node.vision_encoder.engine_checks import check_place
from p2d_node.vision_encoder.engine_store import list_all_engines
from p2d_node.vision_encoder.manifest import read_manifest
from p2d_node.vision_encoder.verifications import remove_record
from p2d_node.whole_folders import MARKER_FILE


def clean_engines(engine_dir: Path, keep: int, *, dry_run: bool = False) -> list[Path]:
    """Remove all but the newest `keep` engines of each kind, and the folders of killed builds.

    Engines of one kind have the same model, backend, precision, input and number of cameras.

    Args:
        engine_dir: The engine folder.
        keep: Number of engines to keep of each kind, at least 1.
        dry_run: Remove nothing.

    Returns:
        The engine folders that were removed, or with `dry_run` would be.

    Raises:
        ConfigError: `keep` is out of range, or the folder cannot be written.
    """
    if keep < 1:
        raise ConfigError(f'keep: got {keep}, allowed: 1 or more')
    if not engine_dir.is_dir():
        raise ConfigError(f'engine_dir: got {str(engine_dir)!r}, which is not a folder')
    with engine_lock(engine_dir):
        old = _old_engines(engine_dir, keep)
        if not dry_run:
            for folder in old:
                _remove(folder)
            for model in engine_dir.iterdir():
                remove_unfinished(model)
    return old


def _old_engines(engine_dir: Path, keep: int) -> list[Path]:
    old: list[Path] = []
    num_newer: Counter[tuple[str, str, int]] = Counter()
    for folder in list_all_engines(engine_dir):
        if folder.is_symlink() or folder.parent.is_symlink():
            continue
        try:
            check_place(engine_dir, folder)
            manifest = read_manifest(folder)
        except (EngineMismatchError, OSError):
            continue
        if manifest.key != folder.name:  # a manifest that was copied into another folder
            continue
        kind = (folder.parent.name, folder.name.rsplit('-', 2)[0], manifest.num_views)
        if num_newer[kind] >= keep:
            old.append(folder)
        num_newer[kind] += 1
    return old


def _remove(folder: Path) -> None:
    remove_record(read_manifest(folder))
    with write_faults(f'engine_dir: {folder}', 'check who owns it'):
        # Renamed first: if the process is killed now, nothing loads half an engine.
        (folder / MARKER_FILE).touch()
        unfinished = folder.with_name(f'{UNFINISHED_PREFIX}{secrets.token_hex(8)}')
        folder.rename(unfinished)
        shutil.rmtree(unfinished)
