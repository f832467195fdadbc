"""The manifest of an engine folder: the model, the runtime and the machine it was built for.

Every field identifies the engine. The manifest holds a digest of all fields, so a changed field is
detected; a verification is of this digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from p2d_node.durable_files import read_json_object
from p2d_node.errors import EngineMismatchError

FORMAT_VERSION = 2
MANIFEST_FILE = 'manifest.json'
ONNX_FILE = 'model.onnx'
ONNX_DATA_FILE = 'model.onnx.data'
PLAN_FILE = 'engine.plan'
TIMING_CACHE_FILE = 'timing.cache'
DIGEST_KEY = 'manifest_sha256'
MAX_JSON_BYTES = 1 << 20

LARGEST_COUNT = 1 << 20
"""Largest number of views, pixels of a side, tokens or features that is accepted."""

LARGEST_FILE_BYTES = 1 << 36
"""Largest file of an engine; the vision part of the largest published model has 12 GB in fp16."""

Count = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_COUNT)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_FILE_BYTES)]


@dataclass(frozen=True, slots=True)
class Artefact:
    """One file of an engine folder."""

    sha256: str
    num_bytes: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineManifest:
    """The identity of one engine.

    Attributes:
        key: Name of its folder.
        backend: Runtime that loads it; `onnx` for an export.
        runtime_version: Exact version of that runtime; empty for an export.
        precision: Number format of the encoder: fp32, fp16 or bf16.
        model_name: Name of the checkpoint's folder.
        model_type: Family of the checkpoint.
        vision_sha256: Fingerprint of the checkpoint's vision part.
        processing: Settings of the checkpoint's image processor.
        input_kind: `frames`, uint8 BGR [views, height, width, 3], or `pixel_values`, float32
            [views, 3, height, width].
        num_views: Static batch.
        height: Height of the input, pixels.
        width: Width of the input, pixels.
        num_tokens: Visual tokens per view.
        hidden_size: Features per token.
        gpu_name: GPU that it was built on; empty if it was built ahead of time or needs no GPU.
        compute_capabilities: GPU generations that it runs on, such as `8.7`; empty: no GPU.
        driver: Driver that it was built with; empty if it was built without one.
        built_with: Package versions of the export: torch, transformers, p2d_node.
        built_at: UTC, ISO 8601.
        artefacts: File name to its hash and size.
    """

    key: str
    backend: str
    runtime_version: str
    precision: Literal['fp32', 'fp16', 'bf16']
    model_name: str
    model_type: str
    vision_sha256: str
    processing: Mapping[str, Any]
    input_kind: Literal['frames', 'pixel_values']
    num_views: Count
    height: Count
    width: Count
    num_tokens: Count
    hidden_size: Count
    gpu_name: str = ''
    compute_capabilities: tuple[str, ...] = ()
    driver: str = ''
    built_with: Mapping[str, str] = field(default_factory=dict)
    built_at: str
    artefacts: Mapping[str, Artefact]
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON data, with the digest of all its fields."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {**content, DIGEST_KEY: _digest(content)}

    @property
    def sha256(self) -> str:
        """Digest of all fields."""
        return str(self.to_json()[DIGEST_KEY])


def read_manifest(folder: Path) -> EngineManifest:
    """Read the manifest of an engine folder.

    Raises:
        EngineMismatchError: The manifest is missing, unreadable or of another format, a field has
            the wrong type or range, or a field was changed.
    """
    path = folder / MANIFEST_FILE
    content = read_engine_json(path)
    digest = content.pop(DIGEST_KEY, None)
    if content.get('format_version') != FORMAT_VERSION:
        raise EngineMismatchError(
            f'{path} has format {content.get("format_version")!r}, allowed: {FORMAT_VERSION}'
        )
    try:
        manifest = msgspec.convert(content, EngineManifest)
        # Of the content and of what was read of it: fields that are missing or unknown change one.
        is_unchanged = digest == _digest(content) == manifest.sha256
    except (msgspec.ValidationError, RecursionError) as err:
        raise EngineMismatchError(f'{path}: {err}') from err
    if not is_unchanged:
        raise EngineMismatchError(f'{path} was changed after the engine was built')
    return manifest


def read_engine_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from an engine folder.

    Raises:
        EngineMismatchError: The file is missing, too large or not a JSON object.
    """
    return read_json_object(
        path,
        next_step='',  # the caller names the command
        max_bytes=MAX_JSON_BYTES,
        error=EngineMismatchError,
    )


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(canonical.encode()).hexdigest()
