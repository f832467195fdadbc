"""Checks an engine before it is loaded.

Loading an engine runs native code. So its location, owner, manifest, fit to this machine and every
byte are checked first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import hashlib
import os
from pathlib import Path
import shlex
import stat
from typing import Any

from p2d_node.errors import EngineMismatchError
from p2d_node.vision_encoder.engine_store import (
    backend_of,
    EngineRequest,
    rebuild_command,
    verify_command,
)
from p2d_node.vision_encoder.machine import Machine
from p2d_node.vision_encoder.manifest import (
    EngineManifest,
    MANIFEST_FILE,
    read_engine_json,
    read_manifest,
    VERIFICATION_FILE,
)
from p2d_node.whole_folders import MARKER_FILE

CHUNK_BYTES = 1 << 22


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


def open_engine(
    engine_dir: Path,
    folder: Path,
    request: EngineRequest,
    machine: Machine,
    *,
    runtime_version: str,
    allow_unverified: bool,
) -> EngineManifest:
    """Check the engine in `folder` completely; load its artefacts only after this.

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
        check_artefacts(folder, manifest)
    except (EngineMismatchError, OSError) as err:
        command = rebuild_command(
            engine_dir, backend_of(folder), request.model_folder, request.num_views, manifest
        )
        raise EngineMismatchError(f'engine {folder}: {err}; rebuild it: {command}') from err
    if not allow_unverified:
        require_verification(folder, manifest, machine)
    return manifest


def check_place(engine_dir: Path, folder: Path) -> None:
    """Check the location, the owner and the permissions of an engine.

    Raises:
        EngineMismatchError: The folder is outside `engine_dir`, or it or one of its files is a
            symbolic link, belongs to another user or can be written by other users.
    """
    root = engine_dir.resolve()
    if folder.resolve() != root / folder.parent.name / folder.name:
        raise EngineMismatchError(
            f'{folder.name} is not in {root}, or a symbolic link leads out of it'
        )
    for path in (root, folder.parent, folder, *sorted(folder.iterdir())):
        status = path.lstat()
        kind = stat.S_ISDIR if path in (root, folder.parent, folder) else stat.S_ISREG
        if not kind(status.st_mode):
            raise EngineMismatchError(f'{path.name} is a link or a special file')
        if status.st_uid not in (0, os.geteuid()):
            raise EngineMismatchError(
                f'{path.name} belongs to user {status.st_uid}, allowed: root or the user that '
                f'runs this ({os.geteuid()})'
            )
        others = stat.S_IWOTH if status.st_gid == os.getegid() else stat.S_IWOTH | stat.S_IWGRP
        if status.st_mode & others:
            raise EngineMismatchError(
                f'{path.name} can be written by other users (mode {status.st_mode & 0o777:o}); '
                f'check who changed it, then chmod go-w {shlex.quote(str(path))}'
            )


def compare(
    folder: Path,
    manifest: EngineManifest,
    request: EngineRequest,
    machine: Machine,
    runtime_version: str,
) -> list[Check]:
    """Compare the manifest of an engine with this machine and with the request."""
    vision_sha256 = request.vision_sha256()
    return [
        _equal('folder name', manifest.key, folder.name),
        _equal('backend', manifest.backend, backend_of(folder)),
        _equal('model', manifest.model_name, request.model_name),
        Check(
            'vision weights',
            manifest.vision_sha256[:16],
            vision_sha256[:16],
            manifest.vision_sha256 == vision_sha256,
        ),
        _compare_settings('image processor', manifest.processing, request.processing),
        _equal('number of cameras', manifest.num_views, request.num_views),
        _equal('runtime version', manifest.runtime_version, runtime_version),
        *_compare_gpu(manifest, machine),
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


def check_artefacts(folder: Path, manifest: EngineManifest) -> None:
    """Compare every file of an engine with its size and hash in the manifest.

    Raises:
        EngineMismatchError: A file is missing, changed or not in the manifest.
    """
    for name, artefact in manifest.artefacts.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise EngineMismatchError(f'{name} is missing')
        num_bytes = path.stat().st_size
        if num_bytes != artefact.num_bytes:
            raise EngineMismatchError(
                f'{name} has {num_bytes} bytes, the manifest says {artefact.num_bytes}'
            )
        if hash_file(path) != artefact.sha256:
            raise EngineMismatchError(f'{name} was changed after the build (other SHA-256)')
    known = {*manifest.artefacts, MANIFEST_FILE, VERIFICATION_FILE, MARKER_FILE}
    # A verification that was killed leaves a file with this prefix, which is harmless.
    extra = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in known and not path.name.startswith(f'.{VERIFICATION_FILE}-')
    )
    if extra:
        raise EngineMismatchError(f'{extra[0]} is not part of the engine')


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def require_verification(folder: Path, manifest: EngineManifest, machine: Machine) -> None:
    """Check that the engine was compared with torch on this machine and passed.

    Raises:
        EngineMismatchError: It was not verified, verified on another machine, or failed.
    """
    reason = verification_gap(folder, manifest, machine)
    if reason:
        raise EngineMismatchError(
            f'engine {folder}: {reason}; verify it here: {verify_command(folder)} (or set '
            'encoder.allow_unverified to true)'
        )


def verification_gap(folder: Path, manifest: EngineManifest, machine: Machine) -> str:
    """Return why the engine is not verified on this machine; empty: it is verified."""
    if not (folder / VERIFICATION_FILE).is_file():
        return 'it was never compared with torch on this machine'
    try:
        record = read_engine_json(folder / VERIFICATION_FILE)
    except EngineMismatchError as err:
        return str(err)
    driver, here = record.get('driver'), machine.driver or 'none'
    gaps = {
        'its verification is of another build': record.get('manifest_sha256') == manifest.sha256,
        'it was verified on another machine': record.get('machine') == machine.fingerprint,
        f'it was verified with driver {driver!r}, here it is {here}': driver == machine.driver,
        f'it failed its verification: {record.get("summary")}': record.get('passed') is True,
    }
    return next((reason for reason, fits in gaps.items() if not fits), '')
