"""The fingerprint of the vision part of a checkpoint, from which engines are built."""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from p2d_node.checkpoints.settings_limits import read_config
from p2d_node.checkpoints.weight_files import read_tensors
from p2d_node.errors import ConfigError

CHUNK_BYTES = 1 << 22

NOT_VISION = (
    'text_config',
    'transformers_version',
    'architectures',
    'dtype',
    'torch_dtype',
    'quantization_config',
)
"""Fields of config.json that do not affect the vision part."""


def hash_vision_weights(folder: Path, vision_keys: Sequence[str]) -> str:
    """Return the SHA-256 of the weights and the configuration of the vision part.

    Names, dtypes, shapes and bytes of weights count; the files that store them do not. Weights and
    configuration of the language model do not count.

    Args:
        folder: The checkpoint.
        vision_keys: A weight belongs to the vision part if its name contains one of these.

    Raises:
        ConfigError: config.json is not a JSON object, or a safetensors file is incomplete.
    """
    facts = {key: value for key, value in read_config(folder).items() if key not in NOT_VISION}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(read_tensors(folder).items()):
        if not any(key in name for key in vision_keys):
            continue
        digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
        with tensor.path.open('rb') as file:
            _update(digest, file, tensor.first, tensor.last)
    return digest.hexdigest()


def _update(digest: Any, file: BinaryIO, first: int, last: int) -> None:
    file.seek(first)
    while first < last:
        chunk = file.read(min(CHUNK_BYTES, last - first))
        if not chunk:
            raise ConfigError(
                f'model: {file.name}: shorter than its header says; copy the checkpoint again'
            )
        digest.update(chunk)
        first += len(chunk)
