"""The fingerprint of the vision part of a checkpoint, from which engines are built."""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from p2d_node.durable_files import read_json_object
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
    config = read_json_object(folder / 'config.json', parameter='model')
    facts = {key: value for key, value in config.items() if key not in NOT_VISION}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    tensors = {}
    for path in sorted(folder.glob('*.safetensors')):
        for name, entry in _read_header(path).items():
            if any(key in name for key in vision_keys):
                tensors[name] = (path, entry)
    for name, (path, entry) in sorted(tensors.items()):
        digest.update(json.dumps([name, entry['dtype'], entry['shape']]).encode())
        with path.open('rb') as file:
            _update(digest, file, *entry['span'])
    return digest.hexdigest()


def _read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return name to dtype, shape and `span`, the bytes in the file, of every tensor."""
    try:
        with path.open('rb') as file:
            size = int.from_bytes(file.read(8), 'little')
            if not 0 < size < path.stat().st_size:
                raise ValueError(f'a header of {size} bytes in a file of {path.stat().st_size}')
            header = json.loads(file.read(size))
        header.pop('__metadata__', None)
        for entry in header.values():
            first, last = entry['data_offsets']
            entry['span'] = (8 + size + first, 8 + size + last)
    except (OSError, ValueError, KeyError, AttributeError) as err:
        raise ConfigError(
            f'model: {path}: not a complete safetensors file: {err}; copy the checkpoint again'
        ) from err
    return dict(header)


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
