"""The weight files of a checkpoint: which files a library loads, and what their headers say.

Everything that reads weights asks here, so that what is fingerprinted is what is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
import json
import math
import os
from pathlib import Path
import stat
from typing import Any

from p2d_node.durable_files import MAX_JSON_BYTES, read_json_object
from p2d_node.errors import ConfigError, quote
from p2d_node.sparse_files import BLOCK_BYTES, is_sparse

WEIGHTS_FILE = 'model.safetensors'
INDEX_FILE = 'model.safetensors.index.json'
SUFFIX = '.safetensors'

MAX_HEADER_BYTES = 16 << 20
"""Of all weight files of a checkpoint together."""

MAX_TENSORS = 50_000
"""Names of one checkpoint; the largest published vision-language models have about 3,000."""

MAX_SHARDS = 1000
"""Weight files of one checkpoint; the largest published models have about 200."""

OTHER_WEIGHTS = 'shard-*-model-*-of-*.safetensors'
"""Where there is such a file, transformers loads these and not those of `find_weight_files`."""

MAX_DIMENSIONS, MAX_SIDE, MAX_ELEMENTS = 8, 1 << 40, 1 << 50
"""Of a tensor; the largest weights have two to five dimensions, and sides of a million."""

READ_SUFFIXES = ('.json', '.jinja', '.model', '.txt', '.tiktoken', SUFFIX)
"""Endings of the files that libraries read in a checkpoint folder."""

DTYPE_BITS = {
    **dict.fromkeys(('F64', 'I64'), 64),
    **dict.fromkeys(('F32', 'I32'), 32),
    **dict.fromkeys(('F16', 'BF16'), 16),
}
"""Number formats, as safetensors names them. Smaller ones take several times as much memory once
they are loaded; such weights are quantised, which is not supported."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        path: The file.
        dtype: Name of its number format, such as `BF16`.
        shape: Its shape.
        first: Its first byte in the file.
        last: The byte after its last one.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int

    @property
    def num_elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def check_files(folder: Path, *, parameter: str = 'model') -> None:
    """Check that every file that is read in a checkpoint folder is a plain file in it.

    The links of a Hugging Face snapshot into the blobs of its own repository are allowed.

    Raises:
        ConfigError: A file is a link out of the folder, a pipe or a device; or a folder is a link.
    """
    if not folder.is_dir():
        raise ConfigError(
            f'{parameter}: got {quote(str(folder))}, which is not a folder; name a checkpoint '
            'folder'
        )
    root = folder.resolve()
    # ~/.cache/huggingface/hub/models--owner--name/{blobs,snapshots/REVISION}
    is_snapshot = root.parent.name == 'snapshots'
    allowed = {root, root.parents[1] / 'blobs'} if is_snapshot else {root}
    for path in folder.iterdir():
        if path.is_symlink() and path.is_dir():
            raise ConfigError(
                f'{parameter}: {path} is a link to a folder; copy that folder, or remove the link'
            )
        if path.suffix not in READ_SUFFIXES:
            continue
        try:
            target = path.resolve(strict=True)
            is_plain = stat.S_ISREG(target.stat().st_mode)
        except (OSError, RuntimeError) as err:
            raise ConfigError(
                f'{parameter}: {path} leads nowhere: {err}; copy the checkpoint again'
            ) from err
        if target.parent not in allowed:
            raise ConfigError(
                f'{parameter}: {path} is a link to {target}, which is outside of the checkpoint; '
                'copy the file into the folder'
            )
        if not is_plain:
            raise ConfigError(f'{parameter}: {path} is no plain file; copy the checkpoint again')
        _check_file_size(path, target.stat(), parameter)


def _check_file_size(path: Path, status: os.stat_result, parameter: str) -> None:
    if path.suffix != SUFFIX:
        if status.st_size > MAX_JSON_BYTES:
            raise ConfigError(
                f'{parameter}: {path} has {status.st_size} bytes, allowed: up to '
                f'{MAX_JSON_BYTES}; copy the checkpoint again'
            )
    elif _is_sparse(path):
        raise ConfigError(
            f'{parameter}: {path} has {status.st_size} bytes, of which '
            f'{BLOCK_BYTES * status.st_blocks} are on the disk; copy it again'
        )


def _is_sparse(path: Path) -> bool:
    with path.open('rb') as file:
        return is_sparse(file.fileno(), os.fstat(file.fileno()))


def find_weight_files(
    folder: Path, *, parameter: str = 'model', file_name: str = WEIGHTS_FILE
) -> list[Path]:
    """Return the files that transformers loads of a checkpoint, in order of their names.

    Args:
        folder: The checkpoint.
        parameter: The parameter that names it, for messages.
        file_name: Name of the file that takes the place of an index and its shards.

    Raises:
        ConfigError: There are none, or too many; one of them is missing, is not in the folder, or
            has two names; or transformers would load other files.
    """
    check_files(folder, parameter=parameter)
    for path in sorted(folder.glob(OTHER_WEIGHTS)):
        raise ConfigError(
            f'{parameter}: {path} is a part of a distributed checkpoint, allowed: {file_name}, or '
            f'{INDEX_FILE} and its files; remove the parts, or save the model with save_pretrained'
        )
    if (folder / file_name).is_file():
        return [folder / file_name]
    index = folder / INDEX_FILE
    if not index.is_file():
        raise ConfigError(_no_weights(folder, parameter))
    settings = read_json_object(index, parameter=parameter, max_bytes=MAX_HEADER_BYTES)
    weight_map = settings.get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConfigError(f'{parameter}: {index} has no weight_map; copy it again')
    if len(weight_map) > MAX_TENSORS:
        raise ConfigError(
            f'{parameter}: {index}: got {len(weight_map)} tensors, allowed: up to {MAX_TENSORS}; '
            'copy it again'
        )
    names = sorted(set(map(str, weight_map.values())))
    shards = [_shard(folder, name, parameter) for name in names[: MAX_SHARDS + 1]]
    files = {(status.st_dev, status.st_ino) for status in map(Path.stat, shards)}
    if len(names) > MAX_SHARDS or len(files) < len(shards):
        raise ConfigError(
            f'{parameter}: {index}: got {len(names)} names of {len(files)} files, allowed: up to '
            f'{MAX_SHARDS} different files; copy the checkpoint again'
        )
    return shards


def _shard(folder: Path, name: str, parameter: str) -> Path:
    if Path(name).name != name or not name.endswith(SUFFIX):
        raise ConfigError(
            f'{parameter}: {folder / INDEX_FILE}: got the file {quote(name)}, allowed: '
            f'{SUFFIX} files in the same folder; copy the checkpoint again'
        )
    if not (folder / name).is_file():
        raise ConfigError(
            f'{parameter}: {folder}: {name} is missing, which {INDEX_FILE} names; copy it again'
        )
    return folder / name


def _no_weights(folder: Path, parameter: str) -> str:
    pickles = sorted(folder.glob('*.bin'))
    if not pickles:
        return (
            f'{parameter}: {folder} has no weights: no {WEIGHTS_FILE} and no {INDEX_FILE} in it; '
            'copy the whole checkpoint'
        )
    # No name of the folder in it: a shell would read it.
    return (
        f'{parameter}: {folder}: got {len(pickles)} pickled *.bin files, allowed: safetensors, as '
        'loading a pickle can run code; if you trust the files, convert each with python -c '
        "\"import torch, safetensors.torch as s; s.save_file(torch.load('FILE.bin', "
        "weights_only=True), 'FILE.safetensors')\""
    )


def read_tensors(folder: Path, *, parameter: str = 'model') -> dict[str, StoredTensor]:
    """Return name to place of every tensor that is loaded of a checkpoint.

    Raises:
        ConfigError: See `find_weight_files` and `read_headers`.
    """
    return read_headers(find_weight_files(folder, parameter=parameter), parameter=parameter)


def read_headers(paths: Sequence[Path], *, parameter: str = 'model') -> dict[str, StoredTensor]:
    """Return name to place of every tensor of safetensors files; no tensor is read.

    Raises:
        ConfigError: A file is not a complete safetensors file; or there are too many tensors, or
            too large headers, in all files together.
    """
    tensors: dict[str, StoredTensor] = {}
    num_tensors = 0
    bytes_left = MAX_HEADER_BYTES
    for path in paths:
        header, num_bytes = _read_header(path, bytes_left, parameter)
        bytes_left -= num_bytes
        num_tensors += len(header)  # also those of a name that another file has, too
        if num_tensors > MAX_TENSORS:
            raise ConfigError(
                f'{parameter}: {path.parent}: got more than {MAX_TENSORS} tensors, allowed: up to '
                f'{MAX_TENSORS}; name another checkpoint'
            )
        tensors |= header
    return tensors


def _read_header(
    path: Path, max_bytes: int, parameter: str
) -> tuple[dict[str, StoredTensor], int]:
    """Return the tensors of one file, and the size of its header in bytes."""
    try:
        with path.open('rb') as file:
            num_bytes = path.stat().st_size
            size = int.from_bytes(file.read(8), 'little')
            if not 0 < size <= num_bytes - 8:
                raise ValueError(f'a header of {size} bytes in a file of {num_bytes}')
            if size > max_bytes:
                raise ValueError(
                    f'a header of {size} bytes, allowed: up to {MAX_HEADER_BYTES} in all files'
                )
            header = json.loads(file.read(size))
        header.pop('__metadata__', None)
        tensors = {name: _stored(path, entry, 8 + size) for name, entry in header.items()}
        needed = max((tensor.last for tensor in tensors.values()), default=0)
        _check_places(tensors.values())
        if needed > num_bytes:
            raise ValueError(f'{num_bytes} bytes, its header says {needed}')
        return tensors, size
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        raise ConfigError(
            f'{parameter}: {path}: not a complete safetensors file: {err}; copy the checkpoint '
            'again'
        ) from err


def _check_places(tensors: Iterable[StoredTensor]) -> None:
    """Raise `ValueError` if tensors share bytes: a small file could hold any number of them."""
    places = sorted((tensor.first, tensor.last) for tensor in tensors)
    for (_, end), (start, _) in pairwise(places):
        if start < end:
            raise ValueError(f'two tensors share the byte {start}')


def _stored(path: Path, entry: dict[str, Any], start: int) -> StoredTensor:
    first, last = entry['data_offsets']
    shape, dtype = tuple(entry['shape']), entry['dtype']
    if not all(type(size) is int and size >= 0 for size in (*shape, first, last)):
        raise ValueError(f'sizes that are no numbers: {quote(entry)}')
    is_long = len(shape) > MAX_DIMENSIONS or max(shape, default=0) > MAX_SIDE
    # A side of 0 hides the others from the number of bytes, but not from torch.
    if is_long or math.prod(side or 1 for side in shape) > MAX_ELEMENTS:
        raise ValueError(
            f'a shape that no tensor has: {quote(entry)}, allowed: up to {MAX_DIMENSIONS} sides, '
            f'each up to {MAX_SIDE}'
        )
    if dtype not in DTYPE_BITS:
        raise ValueError(f'numbers of {quote(dtype)}, allowed: {", ".join(DTYPE_BITS)}')
    if math.prod(shape) * DTYPE_BITS[dtype] != 8 * (last - first):
        raise ValueError(f'a shape that does not fit its bytes: {quote(entry)}')
    return StoredTensor(path, dtype, shape, start + first, start + last)
