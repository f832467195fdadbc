"""Exports as folders of the engine folder: an export that exists is used again.

Only exports whose tokens in ONNX Runtime equal torch's are kept, and an export that is found is
compared again: it may have been copied in. That needs ONNX Runtime, which has no bfloat16 on a
CPU. Without it the export counts as not compared; the engines that are built of it are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
import importlib.metadata
from pathlib import Path
import secrets
from typing import Any

from p2d_node import __version__
from p2d_node.durable_files import write_json
from p2d_node.engine_build.engine_folders import engine_lock, new_engine_folder
from p2d_node.engine_build.export import export_onnx
from p2d_node.engine_build.export_plan import ExportPlan
from p2d_node.engine_build.verify import require_faithful, Verification
from p2d_node.errors import BackendUnavailableError, EngineMismatchError
from p2d_node.language_model.families.registry import hash_vision_part
from p2d_node.vision_encoder.base import FRAMES
from p2d_node.vision_encoder.engine_checks import check_place
from p2d_node.vision_encoder.engine_files import check_artefacts, hash_file
from p2d_node.vision_encoder.engine_store import EXPORT, list_engines
from p2d_node.vision_encoder.manifest import (
    Artefact,
    EngineManifest,
    MANIFEST_FILE,
    ONNX_DATA_FILE,
    ONNX_FILE,
    read_manifest,
)
from p2d_node.vision_encoder.onnx_graph import checked_model
from p2d_node.vision_encoder.tensorrt_api import Progress
from p2d_node.whole_folders import MARKER_FILE, publish
import torch

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
"""Exports with equal values in these fields are the same."""

EXPORT_FILES = {ONNX_FILE, ONNX_DATA_FILE}
"""An export may have these; each engine that is built of it gets them all."""


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A finished export or engine.

    Attributes:
        folder: Its folder.
        manifest: Its manifest.
        verification: The comparison with torch on this machine, now; None if it was not run.
    """

    folder: Path
    manifest: EngineManifest
    verification: Verification | None


def export_model(plan: ExportPlan, engine_dir: Path, progress: Progress) -> BuiltEngine:
    """Export `plan` into the engine folder, or find the same export there.

    Args:
        plan: What to export.
        engine_dir: The engine folder.
        progress: Called with the phase, the steps done and the number of steps.

    Raises:
        ConfigError: The checkpoint does not load, or the folder cannot be written.
        EngineMismatchError: The tokens of the export differ from torch's; it is not kept.
    """
    with engine_lock(engine_dir):
        return find_or_export(plan, engine_dir, progress)


def find_or_export(plan: ExportPlan, engine_dir: Path, progress: Progress) -> BuiltEngine:
    """Like `export_model`, with the engine lock already held."""
    fields = _export_fields(plan)
    for folder in list_engines(engine_dir, plan.checkpoint.folder.name, EXPORT):
        found = _open_same_export(plan, engine_dir, folder, fields, progress)
        if found is not None:
            return found
    with new_engine_folder(engine_dir / plan.checkpoint.folder.name) as folder:
        manifest = _write_export(plan, folder, fields, progress)
        verification = _check_export(plan, folder, manifest, progress)
        final = publish(folder, folder.with_name(manifest.key))
    return BuiltEngine(final, manifest, verification)


def _export_fields(plan: ExportPlan) -> dict[str, Any]:
    height, width = plan.input_size
    versions = {name: importlib.metadata.version(name) for name in ('torch', 'transformers')}
    return {
        'precision': plan.precision,
        'model_name': plan.checkpoint.folder.name,
        'vision_sha256': hash_vision_part(plan.checkpoint),
        'processing': plan.processing.to_json(),
        'input_kind': plan.input_spec.kind,
        'num_views': plan.num_views,
        'height': height,
        'width': width,
        'built_with': {**versions, 'p2d_node': __version__},
    }


def _open_same_export(
    plan: ExportPlan,
    engine_dir: Path,
    folder: Path,
    fields: Mapping[str, Any],
    progress: Progress,
) -> BuiltEngine | None:
    """Return the export in `folder` if it has the values `fields` and computes what torch does."""
    try:
        check_place(engine_dir, folder)
        manifest = read_manifest(folder)
        if any(getattr(manifest, name) != fields[name] for name in SAME_EXPORT):
            return None
        # torch's version does not matter: the export is compared with the one that is installed.
        if manifest.built_with.get('p2d_node') != __version__:
            return None
        if not {ONNX_FILE} <= set(manifest.artefacts) <= EXPORT_FILES:
            return None
        check_artefacts(folder, manifest)
        checked_model((folder / ONNX_FILE).read_bytes())
        verification = _check_export(plan, folder, manifest, progress)
    except BackendUnavailableError:
        return BuiltEngine(folder, manifest, None)
    except EngineMismatchError:
        return None  # a damaged or forged export stays for clean-engines; a new one is made
    return BuiltEngine(folder, manifest, verification)


def _write_export(
    plan: ExportPlan, folder: Path, fields: Mapping[str, Any], progress: Progress
) -> EngineManifest:
    progress('export', 0, 1)
    num_tokens, hidden_size = export_onnx(plan, folder)
    progress('export', 1, 1)
    manifest = EngineManifest(
        key=make_key(EXPORT, plan),
        backend=EXPORT,
        runtime_version='',
        num_tokens=num_tokens,
        hidden_size=hidden_size,
        built_at=utc_now(),
        artefacts=hash_artefacts(folder),
        model_type=plan.checkpoint.model_type,
        **fields,
    )
    write_json(folder / MANIFEST_FILE, manifest.to_json())
    return manifest


def _check_export(
    plan: ExportPlan, folder: Path, manifest: EngineManifest, progress: Progress
) -> Verification | None:
    """Compare the export in ONNX Runtime with torch; ONNX Runtime has no bfloat16 on a CPU."""
    if manifest.precision == 'bf16':
        return None
    progress('check', 0, 1)
    verification = require_faithful(
        folder, manifest, plan, 'onnxruntime', torch.device('cpu'), next_step='precision fp32'
    )
    progress('check', 1, 1)
    return verification


def hash_artefacts(
    folder: Path, known: Mapping[str, Artefact] | None = None
) -> dict[str, Artefact]:
    """Return name to hash and size of every file in a folder.

    Args:
        folder: The folder of a build.
        known: Files whose hash is known; they are not read.
    """
    known = known or {}
    return {
        path.name: known.get(path.name) or Artefact(hash_file(path), path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.name != MARKER_FILE
    }


def make_key(backend: str, plan: ExportPlan) -> str:
    """Return a new name for the folder of an engine or an export."""
    height, width = plan.input_size
    kind = plan.input_spec.kind
    size = f'-{height}x{width}' if kind == FRAMES else ''
    time = datetime.now(timezone.utc).strftime('%Y%m%dT%H%M%S.%fZ')
    return f'{backend}-{plan.precision}-{kind}{size}-{time}-{secrets.token_hex(3)}'


def utc_now() -> str:
    """Return the time of the system clock, UTC, ISO 8601, in seconds."""
    return datetime.now(timezone.utc).isoformat(timespec='seconds')
