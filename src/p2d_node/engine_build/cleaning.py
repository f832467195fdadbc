"""Removes old engines and keeps the newest of each kind.

Only real folders with a valid manifest are removed: a folder whose name looks like an engine's may
be anything, and a link may lead anywhere. A manifest proves nothing about its engine, so an engine
that was verified here is old only if newer ones were verified here too. An export counts as
verified if an engine is that was built of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
from p2d_node.vision_encoder.engine_files import check_artefacts
from p2d_node.vision_encoder.engine_store import EXPORT, list_all_engines
from p2d_node.vision_encoder.machine import Machine, this_machine
from p2d_node.vision_encoder.manifest import EngineManifest, read_manifest
from p2d_node.vision_encoder.verifications import verification_gap
from p2d_node.whole_folders import MARKER_FILE
import torch


def clean_engines(engine_dir: Path, keep: int, *, dry_run: bool = False) -> list[Path]:
    """Remove all but the newest `keep` engines of each kind, and the folders of killed builds.

    Engines of one kind have the same model, backend, precision, input and number of cameras, and
    either all or none of them are verified on this machine.

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
    num_newer: Counter[tuple[str, str, int, bool]] = Counter()
    engines = list(_whole_engines(engine_dir))
    machines = _machines()
    verified = [
        manifest
        for _, manifest in engines
        if any(not verification_gap(manifest, machine) for machine in machines)
    ]
    proven = {(name, file.sha256) for m in verified for name, file in m.artefacts.items()}
    for folder, manifest in engines:
        is_proven = manifest in verified or (
            manifest.backend == EXPORT
            and proven.issuperset((name, file.sha256) for name, file in manifest.artefacts.items())
            and _has_its_hashes(folder, manifest)
        )
        kind = (
            manifest.model_name,
            folder.name.rsplit('-', 2)[0],
            manifest.num_views,
            is_proven,
        )
        if num_newer[kind] >= keep:
            old.append(folder)
        num_newer[kind] += 1
    return old


def _machines() -> list[Machine]:
    """Return this machine with each device that an engine may have been verified on."""
    gpus = [torch.device('cuda', number) for number in range(torch.cuda.device_count())]
    return [this_machine(device) for device in (torch.device('cpu'), *gpus)]


def _whole_engines(engine_dir: Path) -> Iterator[tuple[Path, EngineManifest]]:
    """Yield the engines that have all their files, newest first, with their manifests."""
    for folder in list_all_engines(engine_dir):
        if folder.is_symlink() or folder.parent.is_symlink():
            continue
        try:
            check_place(engine_dir, folder)
            manifest = read_manifest(folder)
            is_whole = _has_its_files(folder, manifest)
        except (EngineMismatchError, OSError):
            continue
        # Else it is a copy, which the node does not load either.
        is_original = (manifest.model_name, manifest.key) == (folder.parent.name, folder.name)
        if is_whole and is_original:
            yield folder, manifest


def _has_its_files(folder: Path, manifest: EngineManifest) -> bool:
    sizes = {path.name: path.lstat().st_size for path in folder.iterdir()}
    files = manifest.artefacts.items()
    return bool(files) and all(sizes.get(name) == file.num_bytes for name, file in files)


def _has_its_hashes(folder: Path, manifest: EngineManifest) -> bool:
    try:
        check_artefacts(folder, manifest)
    except EngineMismatchError:
        return False
    return True


def _remove(folder: Path) -> None:
    # The record of its verification stays: it may be that of the original of a copy.
    with write_faults(f'engine_dir: {folder}', 'check who owns it'):
        # Renamed first: if the process is killed now, nothing loads half an engine.
        (folder / MARKER_FILE).touch()
        unfinished = folder.with_name(f'{UNFINISHED_PREFIX}{secrets.token_hex(8)}')
        folder.rename(unfinished)
        shutil.rmtree(unfinished)
