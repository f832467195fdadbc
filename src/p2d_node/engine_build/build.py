"""Builds engines: export, plan, verification, and then the rename into the engine folder.

A build works in a folder whose name begins with a dot, which nothing loads; its last step renames
this folder. A build that is killed leaves no engine and does not change existing ones.
"""

from __future__ import annotations

from dataclasses import replace
import os
from pathlib import Path
import shutil
from typing import Any

from p2d_node.durable_files import write_bytes, write_json
from p2d_node.engine_build.build_plan import BuildPlan, require_target
from p2d_node.engine_build.engine_folders import engine_lock, new_engine_folder
from p2d_node.engine_build.export_folder import (
    BuiltEngine,
    find_or_export,
    hash_artefacts,
    make_key,
    utc_now,
)
from p2d_node.engine_build.verify import record_verification, require_faithful, Verification
from p2d_node.errors import EngineMismatchError
from p2d_node.vision_encoder.engine_checks import check_place
from p2d_node.vision_encoder.engine_files import hash_file
from p2d_node.vision_encoder.engine_store import list_engines
from p2d_node.vision_encoder.machine import Machine, runtime_version, this_machine
from p2d_node.vision_encoder.manifest import (
    EngineManifest,
    MANIFEST_FILE,
    ONNX_FILE,
    PLAN_FILE,
    read_manifest,
    TIMING_CACHE_FILE,
)
from p2d_node.vision_encoder.tensorrt_api import Progress, TensorrtApi
from p2d_node.vision_encoder.verifications import verification_gap
from p2d_node.whole_folders import publish
import torch


def build_engine(
    plan: BuildPlan, engine_dir: Path, device: torch.device, progress: Progress
) -> BuiltEngine:
    """Build an engine, and verify it if this machine can run it.

    Args:
        plan: What to build.
        engine_dir: The engine folder.
        device: The GPU to build for, or the CPU.
        progress: Called with the phase, the steps done and the number of steps.

    Raises:
        BackendUnavailableError: The runtime is not installed, or needs a GPU and there is none.
        ConfigError: The checkpoint does not load, or the folder cannot be written.
        EngineMismatchError: The runtime refuses the model, or the engine's tokens differ from
            torch's; the engine is not kept.
    """
    version = runtime_version(plan.backend)
    machine = this_machine(device)
    require_target(plan, machine)
    with engine_lock(engine_dir):
        export = find_or_export(plan.export, engine_dir, progress)
        with new_engine_folder(export.folder.parent) as folder:
            _link_export(export, folder, progress)
            if plan.backend != 'onnxruntime':
                _write_plan(plan, folder, engine_dir, this_machine(device), progress)
            progress('hash', 0, 1)
            manifest = replace(
                export.manifest,
                key=make_key(plan.backend, plan.export),
                backend=plan.backend,
                runtime_version=version,
                built_at=utc_now(),
                artefacts=hash_artefacts(folder, known=export.manifest.artefacts),
                **_target_fields(plan, machine),
            )
            write_json(folder / MANIFEST_FILE, manifest.to_json())
            progress('hash', 1, 1)
            verification = _verify_here(plan, folder, manifest, device, progress)
            progress('publish', 0, 1)
            final = publish(folder, folder.with_name(manifest.key))
            progress('publish', 1, 1)
    return BuiltEngine(final, manifest, verification)


def _link_export(export: BuiltEngine, folder: Path, progress: Progress) -> None:
    """Link the files of an export into `folder`; copy them if the file system has no links."""
    progress('link', 0, 1)
    for name in export.manifest.artefacts:
        try:
            os.link(export.folder / name, folder / name)
        except OSError:
            shutil.copyfile(export.folder / name, folder / name)
    progress('link', 1, 1)


def _target_fields(plan: BuildPlan, machine: Machine) -> dict[str, Any]:
    """Return the fields of the manifest that say where the engine runs."""
    if plan.backend == 'onnxruntime':
        return {}
    if plan.options.compute_capabilities:
        return {'compute_capabilities': tuple(plan.options.compute_capabilities)}
    return {
        'gpu_name': machine.gpu_name,
        'compute_capabilities': (machine.compute_capability,),
        'driver': machine.driver,
    }


def _write_plan(
    plan: BuildPlan, folder: Path, engine_dir: Path, machine: Machine, progress: Progress
) -> None:
    api = TensorrtApi(plan.backend)
    cache = _newest_timing_cache(plan, engine_dir, api.version, machine)
    options = replace(plan.options, timing_cache=cache)
    built = api.build(folder / ONNX_FILE, options, progress)
    progress('write', 0, 1)
    write_bytes(folder / PLAN_FILE, built.plan)
    if built.timing_cache:
        write_bytes(folder / TIMING_CACHE_FILE, built.timing_cache)
    progress('write', 1, 1)


def _newest_timing_cache(
    plan: BuildPlan, engine_dir: Path, version: str, machine: Machine
) -> bytes:
    """Return the timing cache of the newest verified build of this model with this runtime.

    TensorRT reads it without a check, so that of an engine that was copied in is not used.
    """
    for folder in list_engines(engine_dir, plan.export.checkpoint.folder.name, plan.backend):
        try:
            check_place(engine_dir, folder)
            manifest = read_manifest(folder)
        except EngineMismatchError:
            continue
        path, artefact = folder / TIMING_CACHE_FILE, manifest.artefacts.get(TIMING_CACHE_FILE)
        if artefact is None or manifest.runtime_version != version or not path.is_file():
            continue
        if not verification_gap(manifest, machine) and hash_file(path) == artefact.sha256:
            return path.read_bytes()
    return b''


def _verify_here(
    plan: BuildPlan,
    folder: Path,
    manifest: EngineManifest,
    device: torch.device,
    progress: Progress,
) -> Verification | None:
    """Verify the engine if this machine can run it; else it is verified on its target."""
    capabilities, machine = manifest.compute_capabilities, this_machine(device)
    if capabilities and machine.compute_capability not in capabilities:
        return None
    progress('verify', 0, 1)
    verification = require_faithful(
        folder,
        manifest,
        plan.export,
        manifest.backend,
        device,
        next_step='precision bf16 or fp32',
    )
    record_verification(manifest, machine, verification)
    progress('verify', 1, 1)
    return verification
