"""The vision part of a checkpoint alone: its modules and its fingerprint, without the rest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from p2d_node.errors import checkpoint_faults, ConfigError
from p2d_node.language_model.checkpoint import Checkpoint, FAMILIES
import torch
from torch import nn
from transformers.utils import logging as transformers_logging

CHUNK_BYTES = 1 << 22

NOT_VISION = (
    'text_config',
    'transformers_version',
    'architectures',
    'dtype',
    'torch_dtype',
    'quantization_config',
)
"""Entries of config.json that do not change what the vision part computes."""


def load_vision_module(checkpoint: Checkpoint) -> nn.Module:
    """Load vision tower and projector of `checkpoint` in float32 on the CPU, for export.

    Attention is the eager one: exported SDPA gave wrong results in TensorRT 10.7 (its #4333).

    Returns:
        Maps pixel_values [views, 3, height, width] to visual_tokens [views, tokens, hidden].

    Raises:
        ConfigError: Weights that are missing or do not fit the config.
    """
    transformers_logging.disable_progress_bar()
    family = FAMILIES[checkpoint.model_type]
    verbosity = transformers_logging.get_verbosity()
    # It would list every weight of the language model as not expected.
    transformers_logging.set_verbosity_error()
    try:
        with checkpoint_faults(checkpoint.folder):
            module: nn.Module = family.load_vision_module(checkpoint.folder, dtype=torch.float32)
        return module.eval()
    finally:
        transformers_logging.set_verbosity(verbosity)


def hash_vision_part(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of everything that the vision part is made of.

    Weights count by name, format, shape and bytes, whichever files they lie in; the language
    model's do not count, nor its configuration.

    Raises:
        ConfigError: A file that is not a whole safetensors file.
    """
    config = json.loads((checkpoint.folder / 'config.json').read_text(encoding='utf-8'))
    facts = {key: value for key, value in config.items() if key not in NOT_VISION}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    keys = FAMILIES[checkpoint.model_type].VISION_KEYS
    tensors = {}
    for path in sorted(checkpoint.folder.glob('*.safetensors')):
        for name, entry in _read_header(path).items():
            if any(key in name for key in keys):
                tensors[name] = (path, entry)
    for name, (path, entry) in sorted(tensors.items()):
        digest.update(json.dumps([name, entry['dtype'], entry['shape']]).encode())
        with path.open('rb') as file:
            _update(digest, file, *entry['span'])
    return digest.hexdigest()


def _read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return per tensor its dtype, shape and `span`: first and last byte in the file."""
    try:
        with path.open('rb') as file:
            size = int.from_bytes(file.read(8), 'little')
            if not 0 < size < path.stat().st_size:
                raise ValueError(f'a header of {size} bytes in {path.stat().st_size}')
            header = json.loads(file.read(size))
        header.pop('__metadata__', None)
        for entry in header.values():
            first, last = entry['data_offsets']
            entry['span'] = (8 + size + first, 8 + size + last)
    except (OSError, ValueError, KeyError, AttributeError) as err:
        raise ConfigError(
            f'model: {path}: not a whole safetensors file: {err}; copy the checkpoint again'
        ) from err
    return dict(header)


def _update(digest: Any, file: BinaryIO, first: int, last: int) -> None:
    file.seek(first)
    while first < last:
        chunk = file.read(min(CHUNK_BYTES, last - first))
        if not chunk:
            raise ConfigError(f'model: {file.name}: shorter than its header says; copy it again')
        digest.update(chunk)
        first += len(chunk)
