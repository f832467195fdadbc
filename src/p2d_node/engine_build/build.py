"""Builds engines: export, plan, proof, and only then a name in the engine folder.

A build works in a folder whose name begins with a dot, which nothing loads; its last step renames
it. A build that is cut at any point leaves no engine, and never harms one that was there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
import importlib.metadata
import os
from pathlib import Path
import secrets
import shutil
from typing import Any

from p2d_node import __version__
from p2d_node.durable_files import write_bytes, write_json
from p2d_node.engine_build.atomic import locked, new_folder, publish
from p2d_node.engine_build.export import export_onnx, ExportPlan
from p2d_node.engine_build.verify import THRESHOLDS, Verification, verify, write_verification
from p2d_node.errors import BackendUnavailableError, ConfigError, EngineMismatchError
from p2d_node.language_model.families.registry import hash_vision_part
from p2d_node.vision_encoder.base import FRAMES
from p2d_node.vision_encoder.engine_store import (
    check_artefacts,
    check_place,
    EXPORT,
    hash_file,
    list_engines,
)
from p2d_node.vision_encoder.factory import ENGINE_ENCODERS
from p2d_node.vision_encoder.machine import Machine, runtime_version, this_machine
from p2d_node.vision_encoder.manifest import (
    Artefact,
    EngineManifest,
    MANIFEST_FILE,
    ONNX_FILE,
    PLAN_FILE,
    read_manifest,
    TIMING_CACHE_FILE,
)
from p2d_node.vision_encoder.tensorrt_api import BuildOptions, Progress, TensorrtApi
import torch

ENGINE_BACKENDS = ('tensorrt', 'tensorrt_rtx', 'onnxruntime')

DEFAULT_PRECISION = {'tensorrt': 'fp16', 'tensorrt_rtx': 'fp16', 'onnxruntime': 'fp32'}

SAME_EXPORT = (
    'precision',
    'model_name',
    'vision_sha256',
    'processing',
    'input_kind',
    'num_views',
    'height',
    'width',
)
"""Two exports that agree in these fields are the same."""


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """What is built.

    Attributes:
        export: The model and the engine's input.
        backend: Runtime that will load the engine.
        options: How its plan is built; ONNX Runtime has none.
    """

    export: ExportPlan
    backend: str
    options: BuildOptions = field(default_factory=BuildOptions)

    def __post_init__(self) -> None:
        """Check the values."""
        if self.backend not in ENGINE_BACKENDS:
            raise ConfigError(
                f'--backend: got {self.backend!r}, allowed: {", ".join(ENGINE_BACKENDS)}'
            )
        if self.backend == 'onnxruntime' and self.export.precision == 'bf16':
            raise ConfigError('--precision: got bf16, allowed for onnxruntime: fp32, fp16')
        if self.options.compute_capabilities and self.backend != 'tensorrt_rtx':
            raise ConfigError(
                f'--compute-capability: {self.backend} builds for this machine; only tensorrt_rtx '
                'builds ahead of time'
            )


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A finished engine.

    Attributes:
        folder: Where it lies.
        manifest: Its identity.
        verification: Its proof on this machine; None where it cannot run here.
    """

    folder: Path
    manifest: EngineManifest
    verification: Verification | None


def choose_backend(device: torch.device) -> str:
    """Return the first backend that is installed and can build for this machine.

    Raises:
        BackendUnavailableError: None is.
    """
    refusals = []
    for backend in ENGINE_BACKENDS if device.type == 'cuda' else ('onnxruntime',):
        try:
            runtime_version(backend)
        except BackendUnavailableError as err:
            refusals.append(str(err))
        else:
            return backend
    raise BackendUnavailableError('; '.join(refusals))


def export_model(plan: ExportPlan, engine_dir: Path, progress: Progress) -> BuiltEngine:
    """Export `plan` into the engine folder, or find the same export there.

    Raises:
        ConfigError: The checkpoint does not load, or the folder cannot be written.
        EngineMismatchError: The export does not compute what torch does; it is not kept.
    """
    with locked(engine_dir):
        return _export(plan, engine_dir, progress)


def build_engine(
    plan: BuildPlan, engine_dir: Path, device: torch.device, progress: Progress
) -> BuiltEngine:
    """Build an engine, and prove it where it can run.

    Args:
        plan: What to build.
        engine_dir: The engine folder.
        device: The GPU that it is for, or the CPU.
        progress: Told phase, steps done, steps in all.

    Raises:
        BackendUnavailableError: The runtime is not installed, or needs a GPU that is not there.
        ConfigError: The checkpoint does not load, or the folder cannot be written.
        EngineMismatchError: The runtime refuses the model, or the engine is not what torch
            computes; it is not kept.
    """
    version = runtime_version(plan.backend)
    machine = this_machine(device)
    _require_target(plan, machine)
    with locked(engine_dir):
        export = _export(plan.export, engine_dir, progress)
        with new_folder(export.folder.parent) as folder:
            progress('link', 0, 1)
            for name in export.manifest.artefacts:
                _link(export.folder / name, folder / name)
            progress('link', 1, 1)
            if plan.backend != 'onnxruntime':
                _write_plan(plan, folder, engine_dir, progress)
            progress('hash', 0, 1)
            manifest = replace(
                export.manifest,
                key=_make_key(plan.backend, plan.export),
                backend=plan.backend,
                runtime_version=version,
                built_at=_now(),
                artefacts=_list_artefacts(folder, known=export.manifest.artefacts),
                **_target_fields(plan, machine),
            )
            write_json(folder / MANIFEST_FILE, manifest.to_json())
            progress('hash', 1, 1)
            verification = _prove(folder, manifest, machine, device, progress)
            progress('publish', 0, 1)
            final = publish(folder, manifest.key)
            progress('publish', 1, 1)
    return BuiltEngine(final, manifest, verification)


def verify_engine(engine_dir: Path, folder: Path, device: torch.device) -> Verification:
    """Run an engine on its reference inputs on this machine and record the verdict beside it.

    Raises:
        BackendUnavailableError: The runtime or the GPU is missing.
        EngineMismatchError: The engine is damaged or not for this machine.
    """
    check_place(engine_dir, folder)
    manifest = read_manifest(folder)
    if manifest.backend == EXPORT:
        raise EngineMismatchError(
            f'{folder} is an export, which was checked when it was made; name an engine'
        )
    version = runtime_version(manifest.backend)
    if manifest.runtime_version != version:
        raise EngineMismatchError(
            f'{folder} was built with {manifest.backend} {manifest.runtime_version}, here it is '
            f'{version}; build it anew with p2d build-engine'
        )
    check_artefacts(folder, manifest)
    verification = _run_verification(folder, manifest, manifest.backend, device)
    with locked(engine_dir):
        write_verification(folder, manifest, this_machine(device), verification)
    return verification


def _export(plan: ExportPlan, engine_dir: Path, progress: Progress) -> BuiltEngine:
    fields = _export_fields(plan)
    for folder in list_engines(engine_dir, plan.checkpoint.folder.name, EXPORT):
        found = _same_export(engine_dir, folder, fields)
        if found is not None:
            return found
    with new_folder(engine_dir / plan.checkpoint.folder.name) as folder:
        progress('export', 0, 1)
        num_tokens, hidden_size = export_onnx(plan, folder)
        progress('export', 1, 1)
        min_cosine, max_relative_difference = THRESHOLDS[plan.precision]
        manifest = EngineManifest(
            key=_make_key(EXPORT, plan),
            backend=EXPORT,
            runtime_version='',
            num_tokens=num_tokens,
            hidden_size=hidden_size,
            built_at=_now(),
            min_cosine=min_cosine,
            max_relative_difference=max_relative_difference,
            artefacts=_list_artefacts(folder),
            model_type=plan.checkpoint.model_type,
            **fields,
        )
        write_json(folder / MANIFEST_FILE, manifest.to_json())
        verification = _check_export(folder, manifest, progress)
        final = publish(folder, manifest.key)
    return BuiltEngine(final, manifest, verification)


def _export_fields(plan: ExportPlan) -> dict[str, Any]:
    height, width = plan.input_size
    versions = {name: importlib.metadata.version(name) for name in ('torch', 'transformers')}
    return {
        'precision': plan.precision,
        'model_name': plan.checkpoint.folder.name,
        'vision_sha256': hash_vision_part(plan.checkpoint),
        'processing': plan.processing.to_json(),
        'input_kind': plan.takes.kind,
        'num_views': plan.num_views,
        'height': height,
        'width': width,
        'built_with': {**versions, 'p2d_node': __version__},
    }


def _same_export(engine_dir: Path, folder: Path, fields: Mapping[str, Any]) -> BuiltEngine | None:
    try:
        check_place(engine_dir, folder)
        manifest = read_manifest(folder)
        if any(getattr(manifest, name) != fields[name] for name in SAME_EXPORT):
            return None
        # torch's version does not matter: each export was compared with the torch that made it.
        if manifest.built_with.get('p2d_node') != __version__:
            return None
        check_artefacts(folder, manifest)
    except EngineMismatchError:
        return None  # a damaged export is left for clean-engines, and made anew
    return BuiltEngine(folder, manifest, None)


def _require_target(plan: BuildPlan, machine: Machine) -> None:
    """Refuse a target that cannot be built for, before the minutes that an export may take."""
    if plan.options.compute_capabilities:
        TensorrtApi(plan.backend).find_compute_capabilities(plan.options.compute_capabilities)
    elif plan.backend == 'tensorrt_rtx':
        if not machine.compute_capability:
            raise ConfigError(
                '--compute-capability: needed, as this machine has no GPU to build for; e.g. '
                '--compute-capability 8.6,8.9'
            )
    elif plan.backend == 'tensorrt' and not machine.gpu_name:
        raise ConfigError(
            '--backend: tensorrt builds on the GPU that will run the engine, and this machine has '
            'none; build on the target, or use tensorrt_rtx or onnxruntime'
        )


def _target_fields(plan: BuildPlan, machine: Machine) -> dict[str, Any]:
    if plan.backend == 'onnxruntime':
        return {}
    if plan.options.compute_capabilities:
        return {'compute_capabilities': tuple(plan.options.compute_capabilities)}
    return {
        'gpu_name': machine.gpu_name,
        'compute_capabilities': (machine.compute_capability,),
        'driver': machine.driver,
    }


def _write_plan(plan: BuildPlan, folder: Path, engine_dir: Path, progress: Progress) -> None:
    api = TensorrtApi(plan.backend)
    cache = _newest_timing_cache(plan, engine_dir, api.version)
    options = replace(plan.options, timing_cache=cache)
    built = api.build(folder / ONNX_FILE, options, progress)
    progress('write', 0, 1)
    write_bytes(folder / PLAN_FILE, built.plan)
    if built.timing_cache:
        write_bytes(folder / TIMING_CACHE_FILE, built.timing_cache)
    progress('write', 1, 1)


def _newest_timing_cache(plan: BuildPlan, engine_dir: Path, version: str) -> bytes:
    """Return the timing cache of the last sound build of this model with the same runtime."""
    for folder in list_engines(engine_dir, plan.export.checkpoint.folder.name, plan.backend):
        try:
            check_place(engine_dir, folder)
            manifest = read_manifest(folder)
        except EngineMismatchError:
            continue
        path, artefact = folder / TIMING_CACHE_FILE, manifest.artefacts.get(TIMING_CACHE_FILE)
        if artefact is None or manifest.runtime_version != version or not path.is_file():
            continue
        if hash_file(path) == artefact.sha256:
            return path.read_bytes()
    return b''


def _prove(
    folder: Path,
    manifest: EngineManifest,
    machine: Machine,
    device: torch.device,
    progress: Progress,
) -> Verification | None:
    """Verify the engine where it can run; an ahead-of-time build waits for its target."""
    capabilities = manifest.compute_capabilities
    if capabilities and machine.compute_capability not in capabilities:
        return None
    progress('verify', 0, 1)
    verification = _require_faithful(
        folder, manifest, manifest.backend, device, advice='--precision bf16 or fp32'
    )
    write_verification(folder, manifest, machine, verification)
    progress('verify', 1, 1)
    return verification


def _check_export(
    folder: Path, manifest: EngineManifest, progress: Progress
) -> Verification | None:
    """Compare the export in ONNX Runtime with torch; its CPU kernels know no bfloat16."""
    if manifest.precision == 'bf16':
        return None
    progress('check', 0, 1)
    verification = _require_faithful(
        folder, manifest, 'onnxruntime', torch.device('cpu'), advice='--precision fp32'
    )
    progress('check', 1, 1)
    return verification


def _require_faithful(
    folder: Path, manifest: EngineManifest, backend: str, device: torch.device, *, advice: str
) -> Verification:
    """Compare what lies in an unfinished folder with torch; refuse what differs too much."""
    verification = _run_verification(folder, manifest, backend, device)
    if not verification.passed:
        what = 'export' if manifest.backend == EXPORT else f'{backend} engine'
        raise EngineMismatchError(
            f'{manifest.model_name}: the {what} does not compute what torch does: '
            f'{verification.summary}; it is not kept; try {advice}'
        )
    return verification


def _run_verification(
    folder: Path, manifest: EngineManifest, backend: str, device: torch.device
) -> Verification:
    encoder = ENGINE_ENCODERS[backend](folder, manifest, dtype=torch.float32, device=device)
    return verify(folder, manifest, encoder)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system cannot, copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _list_artefacts(
    folder: Path, known: Mapping[str, Artefact] | None = None
) -> dict[str, Artefact]:
    """Hash every file of an unfinished folder but those that are linked from a checked export."""
    known = known or {}
    return {
        path.name: known.get(path.name) or Artefact(hash_file(path), path.stat().st_size)
        for path in sorted(folder.iterdir())
    }


def _make_key(backend: str, plan: ExportPlan) -> str:
    height, width = plan.input_size
    size = f'-{height}x{width}' if plan.takes.kind == FRAMES else ''
    time = datetime.now(timezone.utc).strftime('%Y%m%dT%H%M%S.%fZ')
    return f'{backend}-{plan.precision}-{plan.takes.kind}{size}-{time}-{secrets.token_hex(3)}'


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec='seconds')
