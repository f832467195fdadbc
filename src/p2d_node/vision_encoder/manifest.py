"""What an engine folder says about itself: for which model, runtime and machine it was built.

Every field is part of an engine's identity or of its proof; a digest over all of them makes a
change of any of them show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
import hashlib
import json
from pathlib import Path
from typing import Any

from p2d_node.errors import EngineMismatchError

FORMAT_VERSION = 1
MANIFEST_FILE = 'manifest.json'
VERIFICATION_FILE = 'verification.json'
ONNX_FILE = 'model.onnx'
PLAN_FILE = 'engine.plan'
REFERENCE_FILE = 'reference.safetensors'
TIMING_CACHE_FILE = 'timing.cache'
DIGEST_KEY = 'manifest_sha256'
MAX_JSON_BYTES = 1 << 20

JSON_TYPES = {'str': str, 'int': int, 'float': float, 'tuple[str, ...]': list}
"""Type of a manifest's field to its type in JSON; all others are objects."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """One file of an engine folder."""

    sha256: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineManifest:
    """The identity of one engine.

    Attributes:
        key: Name of its folder.
        backend: Runtime that loads it; `onnx` for an export that no runtime was chosen for yet.
        runtime_version: Exact version of that runtime; empty for an export.
        precision: Number format of the encoder: fp32, fp16 or bf16.
        model_name: Name of the checkpoint's folder.
        model_type: Family of the checkpoint.
        vision_sha256: Fingerprint of the checkpoint's vision part.
        processing: Settings of the checkpoint's image processor.
        input_kind: `frames`, uint8 BGR [views, height, width, 3], or `pixel_values`, float32
            [views, 3, height, width].
        num_views: Static batch.
        height: Of the input, pixels.
        width: Of the input, pixels.
        num_tokens: Visual tokens per view.
        hidden_size: Features per token.
        gpu_name: GPU that it was built on; empty where it fits every GPU in
            `compute_capabilities`, or needs none.
        compute_capabilities: GPU generations that it runs on, such as `8.7`; empty: no GPU.
        driver: Driver that it was built with; empty where it was built without.
        built_with: Versions that made the export: torch, transformers, onnx, p2d_node.
        built_at: UTC, ISO 8601.
        min_cosine: Smallest allowed cosine between a token of the engine and of torch.
        max_relative_difference: Largest allowed difference of a value from torch's, over the
            largest magnitude in torch's tokens.
        artefacts: File name to its hash and size.
    """

    key: str
    backend: str
    runtime_version: str
    precision: str
    model_name: str
    model_type: str
    vision_sha256: str
    processing: Mapping[str, Any]
    input_kind: str
    num_views: int
    height: int
    width: int
    num_tokens: int
    hidden_size: int
    gpu_name: str = ''
    compute_capabilities: tuple[str, ...] = ()
    driver: str = ''
    built_with: Mapping[str, str] = field(default_factory=dict)
    built_at: str
    min_cosine: float
    max_relative_difference: float
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
        EngineMismatchError: Missing, unreadable, changed after it was written, or of another
            format.
    """
    path = folder / MANIFEST_FILE
    content = read_json(path)
    digest = content.pop(DIGEST_KEY, None)
    if digest != _digest(content):
        raise EngineMismatchError(f'{path} was changed after the engine was built')
    if content.get('format_version') != FORMAT_VERSION:
        raise EngineMismatchError(
            f'{path} has format {content.get("format_version")!r}, allowed: {FORMAT_VERSION}'
        )
    _check_types(path, content)
    artefacts = {name: Artefact(**entry) for name, entry in content['artefacts'].items()}
    capabilities = tuple(content['compute_capabilities'])
    return EngineManifest(
        **{**content, 'artefacts': artefacts, 'compute_capabilities': capabilities}
    )


def _check_types(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse fields that are missing, unknown, or of another type than a manifest writes."""
    if set(content) != {item.name for item in fields(EngineManifest)}:
        raise EngineMismatchError(f'{path} has other fields than a manifest of this format')
    for item in fields(EngineManifest):
        if type(content[item.name]) is not JSON_TYPES.get(str(item.type), dict):
            raise EngineMismatchError(f'{path}: {item.name} has the wrong type')
    texts = [*content['compute_capabilities'], *content['built_with'].values()]
    if not all(isinstance(text, str) for text in texts):
        raise EngineMismatchError(f'{path}: a field has the wrong type')
    for name, entry in content['artefacts'].items():
        kinds = {k: type(v) for k, v in entry.items()} if isinstance(entry, dict) else {}
        if kinds != {'sha256': str, 'num_bytes': int}:
            raise EngineMismatchError(f'{path}: artefact {name} has the wrong type')


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object; `EngineMismatchError` where that is not what lies there."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise EngineMismatchError(f'{path} is larger than {MAX_JSON_BYTES} bytes')
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError as err:
        raise EngineMismatchError(f'{path} is missing: the build did not finish') from err
    except (OSError, ValueError, RecursionError) as err:
        raise EngineMismatchError(f'{path} cannot be read: {err}') from err
    if not isinstance(content, dict):
        raise EngineMismatchError(f'{path} is not a JSON object')
    return content


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(canonical.encode()).hexdigest()
