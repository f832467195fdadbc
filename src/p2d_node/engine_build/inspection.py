"""Compares an engine with this machine line by line, without loading the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from p2d_node.errors import BackendUnavailableError, EngineMismatchError
from p2d_node.vision_encoder.engine_checks import Check, check_place, compare
from p2d_node.vision_encoder.engine_files import check_artefacts
from p2d_node.vision_encoder.engine_store import (
    DEFAULT_NUM_VIEWS,
    EngineRequest,
    EXPORT,
    list_all_engines,
    rebuild_command,
    verify_command,
)
from p2d_node.vision_encoder.machine import runtime_version, this_machine
from p2d_node.vision_encoder.manifest import EngineManifest, read_manifest
from p2d_node.vision_encoder.verifications import verification_gap
import torch

VERIFICATION = 'verification'
CAPABILITY = 'compute capability'


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The result for one engine folder.

    Attributes:
        folder: The folder.
        checks: One line for each compared field and each kind of damage.
        fix_command: The command that rebuilds or verifies the engine; empty if all checks pass.
        fix_machine: Which machine that command must run on; empty: this one.
    """

    folder: Path
    checks: list[Check]
    fix_command: str
    fix_machine: str = ''

    @property
    def fits(self) -> bool:
        """Whether the node loads it."""
        return all(check.fits for check in self.checks)


def request_of(manifest: EngineManifest) -> EngineRequest:
    """Return a request for the model of the manifest itself, for use if no model is named."""
    return EngineRequest(
        model_name=manifest.model_name,
        model_folder=manifest.model_name,
        vision_sha256=lambda: manifest.vision_sha256,
        processing=manifest.processing,
        num_views=manifest.num_views,
    )


def inspect_engine(
    engine_dir: Path, folder: Path, device: torch.device, request: EngineRequest | None = None
) -> Inspection:
    """Compare the engine in `folder` with this machine, and with `request` if it is given."""
    place = _guarded('place and permissions', lambda: check_place(engine_dir, folder))
    try:
        manifest = read_manifest(folder)
    except EngineMismatchError as err:
        damaged = Check('manifest', str(err), 'ok', False)
        return Inspection(
            folder=folder, checks=[place, damaged], fix_command=_rebuild(folder, None, request)
        )
    asked = request or request_of(manifest)
    machine = this_machine(device)
    checks = [place, Check('manifest', 'ok', 'ok', True)]
    checks += compare(folder, manifest, asked, machine, _installed_version(manifest))
    checks.append(_guarded('files', lambda: check_artefacts(folder, manifest)))
    failed = [check.what for check in checks if not check.fits]
    if manifest.backend != EXPORT:
        gap = verification_gap(manifest, machine)
        checks.append(Check(VERIFICATION, 'must pass', gap or 'passed', not gap))
    if all(check.fits for check in checks):
        return Inspection(folder=folder, checks=checks, fix_command='')
    needs_gpu = failed == [CAPABILITY] and device.type != 'cuda'
    fix_command = _rebuild(folder, manifest, request)
    if needs_gpu or not failed:
        fix_command = verify_command(folder, _model_of(folder, request))
    fix_machine = ''
    if needs_gpu:
        fix_machine = f'a GPU of compute capability {" or ".join(manifest.compute_capabilities)}'
    return Inspection(
        folder=folder, checks=checks, fix_command=fix_command, fix_machine=fix_machine
    )


def unverified_engines(engine_dir: Path, model_name: str, device: torch.device) -> list[Path]:
    """List the engines of a model that pass every check but the verification on this machine."""
    found = []
    for folder in list_all_engines(engine_dir):
        failed = [c.what for c in inspect_engine(engine_dir, folder, device).checks if not c.fits]
        if failed == [VERIFICATION] and folder.parent.name == model_name:
            found.append(folder)
    return found


def _guarded(what: str, check: Callable[[], None]) -> Check:
    try:
        check()
    except (EngineMismatchError, OSError) as err:
        return Check(what, str(err), 'ok', False)
    return Check(what, 'ok', 'ok', True)


def _installed_version(manifest: EngineManifest) -> str:
    if manifest.backend == EXPORT:
        return ''
    try:
        return runtime_version(manifest.backend)
    except BackendUnavailableError:
        return 'not installed'


def _rebuild(folder: Path, manifest: EngineManifest | None, request: EngineRequest | None) -> str:
    asked = request or manifest
    num_views = asked.num_views if asked else DEFAULT_NUM_VIEWS
    backend = folder.name.split('-', 1)[0]
    model = _model_of(folder, request)
    return rebuild_command(folder.parents[1], backend, model, num_views, manifest)


def _model_of(folder: Path, request: EngineRequest | None) -> str:
    return request.model_folder if request else folder.parent.name
