"""Checks an engine before it is loaded.

Loading an engine runs native code. So its location, owner, manifest, fit to this machine and every
byte are checked first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
import stat
from typing import Any

from p2d_node.errors import EngineMismatchError
from p2d_node.vision_encoder.engine_files import EngineFiles, read_engine_files
from p2d_node.vision_encoder.engine_store import (
    backend_of,
    EngineRequest,
    rebuild_command,
    verify_command,
)
from p2d_node.vision_encoder.machine import Machine
from p2d_node.vision_encoder.manifest import EngineManifest, read_manifest
from p2d_node.vision_encoder.safe_place import check_folders, check_owner
from p2d_node.vision_encoder.verifications import verification_gap


@dataclass(frozen=True, slots=True)
class Check:
    """One compared property of an engine.

    Attributes:
        what: The property.
        in_engine: Its value in the engine.
        here: Its value on this machine or in this model.
        fits: Whether the engine may be loaded with it.
    """

    what: str
    in_engine: str
    here: str
    fits: bool


@dataclass(frozen=True, slots=True)
class OpenedEngine:
    """An engine that passed all checks.

    Attributes:
        manifest: Its manifest.
        files: The checked content of the files that its runtime gets.
    """

    manifest: EngineManifest
    files: EngineFiles


def open_engine(
    engine_dir: Path,
    folder: Path,
    request: EngineRequest,
    machine: Machine,
    *,
    runtime_version: str,
    allow_unverified: bool,
) -> OpenedEngine:
    """Check the engine in `folder` completely.

    Args:
        engine_dir: The engine folder.
        folder: The folder of the engine.
        request: The model and the cameras that the engine must fit.
        machine: This machine.
        runtime_version: Version of the installed runtime.
        allow_unverified: Whether an engine without verification on this machine may be loaded.

    Raises:
        EngineMismatchError: A check fails; the message names the command that builds or verifies
            the engine.
    """
    manifest: EngineManifest | None = None
    try:
        check_place(engine_dir, folder)
        manifest = read_manifest(folder)
        for check in compare(folder, manifest, request, machine, runtime_version):
            if not check.fits:
                raise EngineMismatchError(
                    f'{check.what}: the engine has {check.in_engine}, here it is {check.here}'
                )
        reason = '' if allow_unverified else verification_gap(manifest, machine)
        # What nobody verified is not even read: its manifest may ask for all the memory.
        files = {} if reason else read_engine_files(folder, manifest, backend_of(folder))
    except (EngineMismatchError, OSError) as err:
        command = rebuild_command(
            engine_dir, backend_of(folder), request.model_folder, request.num_views, manifest
        )
        raise EngineMismatchError(f'engine {folder}: {err}; rebuild it: {command}') from err
    if reason:
        raise EngineMismatchError(
            f'engine {folder}: {reason}; verify it here: '
            f'{verify_command(folder, request.model_folder)} (or set encoder.allow_unverified to '
            'true)'
        )
    return OpenedEngine(manifest, files)


def check_place(engine_dir: Path, folder: Path) -> None:
    """Check the location, the owner and the permissions of an engine and of all folders above it.

    Raises:
        EngineMismatchError: The folder is outside `engine_dir`; or it, a folder above it or one of
            its files is a symbolic link, belongs to another user or can be written by other users.
    """
    root = engine_dir.resolve()
    if folder.resolve() != root / folder.parent.name / folder.name:
        raise EngineMismatchError(
            f'{folder.name} is not in {root}, or a symbolic link leads out of it'
        )
    check_folders(folder.resolve())
    for path in sorted(folder.iterdir()):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise EngineMismatchError(f'{path.name} is a link or a special file')
        check_owner(path, status)


def compare(
    folder: Path,
    manifest: EngineManifest,
    request: EngineRequest,
    machine: Machine,
    runtime_version: str,
) -> list[Check]:
    """Compare the manifest of an engine with this machine and with the request."""
    return [
        _equal('folder name', manifest.key, folder.name),
        _equal('backend', manifest.backend, backend_of(folder)),
        *compare_model(manifest, request),
        _equal('runtime version', manifest.runtime_version, runtime_version),
        *_compare_gpu(manifest, machine),
    ]


def compare_model(manifest: EngineManifest, request: EngineRequest) -> list[Check]:
    """Compare the manifest of an engine with a model and its cameras."""
    vision_sha256 = request.vision_sha256()
    return [
        _equal('model', manifest.model_name, request.model_name),
        Check(
            'vision weights',
            manifest.vision_sha256[:16],
            vision_sha256[:16],
            manifest.vision_sha256 == vision_sha256,
        ),
        _compare_settings('image processor', manifest.processing, request.processing),
        _equal('number of cameras', manifest.num_views, request.num_views),
    ]


def _equal(what: str, in_engine: object, here: object) -> Check:
    return Check(what, str(in_engine) or 'none', str(here) or 'none', in_engine == here)


def _compare_gpu(manifest: EngineManifest, machine: Machine) -> list[Check]:
    checks: list[Check] = []
    if manifest.gpu_name:
        checks.append(_equal('GPU', manifest.gpu_name, machine.gpu_name))
        checks.append(_equal('driver', manifest.driver, machine.driver))
    if manifest.compute_capabilities:
        capabilities = ', '.join(manifest.compute_capabilities)
        here = machine.compute_capability
        fits = here in manifest.compute_capabilities
        checks.append(Check('compute capability', capabilities, here or 'no GPU', fits))
    return checks


def _compare_settings(what: str, in_engine: Mapping[str, Any], here: Mapping[str, Any]) -> Check:
    """Compare settings; the result names only those that differ."""
    names = sorted({*in_engine, *here})
    differ = [name for name in names if in_engine.get(name) != here.get(name)]
    sides = [
        ', '.join(f'{name} {side.get(name)}' for name in differ) or 'the same'
        for side in (in_engine, here)
    ]
    return Check(what, sides[0], sides[1], not differ)
