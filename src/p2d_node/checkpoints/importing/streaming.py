"""Reads the tensors of a published checkpoint one by one and writes the shards of a new one.

At most one shard is held in memory. `check_steps` checks all names and shapes before any tensor is
read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2d_node.checkpoints.weight_files import INDEX_FILE, read_headers, StoredTensor
from p2d_node.durable_files import write_json
from p2d_node.errors import ConfigError
from safetensors.torch import save_file
import torch
from torch import Tensor

SHARD_BYTES = 1 << 30
"""Largest shard that is written; a larger tensor gets a shard of its own."""

NUM_NAMED = 5
"""Number of names that an error lists."""

DTYPES = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
}

Convert = Callable[[Sequence[Tensor]], Sequence[Tensor]]
OnProgress = Callable[[int, int], None]
"""Called with the number of bytes written so far and the number in all."""


def keep(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return `tensors`: the conversion of a step that only renames."""
    return tensors


@dataclass(frozen=True, slots=True)
class Step:
    """A conversion of some tensors of the source to some of the new checkpoint.

    Attributes:
        sources: Names in the source.
        targets: Names in the new checkpoint.
        convert: Maps the tensors of `sources` to those of `targets`, also on the meta device.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    convert: Convert = keep


class Source:
    """The named tensors of several safetensors files."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Read the headers of `files`; a name in a later file replaces the earlier one.

        Raises:
            ConfigError: A file is truncated or not a safetensors file, or a tensor is quantised.
        """
        self._stored: dict[str, StoredTensor] = {}
        self._metas: dict[str, Tensor] = {}
        for name, stored in read_headers(list(files), parameter='folder').items():
            self._add(name, stored)

    def _add(self, name: str, stored: StoredTensor) -> None:
        if stored.dtype not in DTYPES:
            raise ConfigError(
                f'{stored.path}: {name} is stored as {stored.dtype}, allowed: '
                f'{", ".join(DTYPES)}; import the checkpoint without quantisation'
            )
        self._stored[name] = stored
        self._metas[name] = torch.empty(stored.shape, dtype=DTYPES[stored.dtype], device='meta')

    @property
    def names(self) -> Sequence[str]:
        """Names of all tensors, in the order of the files."""
        return tuple(self._stored)

    def meta(self, name: str) -> Tensor:
        """Return a tensor on the meta device with the shape and dtype of `name`."""
        return self._metas[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of `name`.

        Raises:
            ConfigError: There is no such tensor.
        """
        if name not in self._metas:
            raise ConfigError(
                f'the checkpoint has no tensor {name}; check that it has the format you named'
            )
        return tuple(self._metas[name].shape)

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        # The library would read the header again for each tensor, and keep the file mapped.
        stored = self._stored[name]
        content = bytearray(stored.last - stored.first)
        with stored.path.open('rb') as file:
            file.seek(stored.first)
            if file.readinto(content) < len(content):
                raise ConfigError(f'{stored.path}: {name} is cut; copy the checkpoint again')
        empty = torch.empty_like(self._metas[name], device='cpu')
        return torch.frombuffer(content, dtype=empty.dtype).view(empty.shape) if content else empty

    def main_dtype(self) -> torch.dtype:
        """Return the dtype of most of the values."""
        sizes: dict[torch.dtype, int] = {}
        for meta in self._metas.values():
            sizes[meta.dtype] = sizes.get(meta.dtype, 0) + meta.numel()
        return max(sizes, key=lambda dtype: sizes[dtype])


def check_steps(
    steps: Sequence[Step],
    source: Source,
    wanted: Mapping[str, Tensor],
    unexpected: Sequence[str],
) -> int:
    """Check that `steps` give exactly the tensors of the model, without reading any.

    Args:
        steps: All steps of an import.
        source: Tensors of the published checkpoint.
        wanted: State dict of the model; only names and shapes are used.
        unexpected: Tensors of the source that no step uses.

    Returns:
        The number of bytes that will be written.

    Raises:
        ConfigError: Names are missing or not expected, or shapes differ from the model's.
    """
    made = {name: tensor for step in steps for name, tensor in _dry_run(step, source).items()}
    missing = [name for name in wanted if name not in made]
    left = [*unexpected, *(name for name in made if name not in wanted)]
    if missing or left:
        raise ConfigError(
            f'{_listed(missing, "missing")}, {_listed(left, "not expected")}; the checkpoint '
            'has another format than you named, or config.json is of another checkpoint'
        )
    wrong = [
        f'{name} {list(made[name].shape)} instead of {list(tensor.shape)}'
        for name, tensor in wanted.items()
        if made[name].shape != tensor.shape
    ]
    if wrong:
        raise ConfigError(
            f'{_listed(wrong, "of another shape than config.json says")}; copy config.json again'
        )
    return sum(tensor.nbytes for tensor in made.values())


def _dry_run(step: Step, source: Source) -> dict[str, Tensor]:
    metas = [source.meta(name) for name in step.sources]
    try:
        return dict(zip(step.targets, step.convert(metas), strict=True))
    except (RuntimeError, ArithmeticError, TypeError) as err:
        shapes = ', '.join(
            f'{n} {list(m.shape)}' for n, m in zip(step.sources, metas, strict=True)
        )
        raise ConfigError(
            f'{shapes}: does not fit config.json; copy the config.json of this checkpoint'
        ) from err


def _listed(names: Sequence[str], what: str) -> str:
    if not names:
        return f'0 weights are {what}'
    rest = ', ...' if len(names) > NUM_NAMED else ''
    return f'{len(names)} weights are {what}: {", ".join(names[:NUM_NAMED])}{rest}'


class _ShardWriter:
    """Collects tensors and writes them to `folder`, one shard at a time."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._written: list[tuple[Path, list[str]]] = []
        self.num_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor; if it does not fit into the shard, the shard is written first."""
        if self._pending and self._pending_bytes + tensor.nbytes > self._shard_bytes:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self._pending_bytes += tensor.nbytes
        self.num_bytes += tensor.nbytes

    def finish(self) -> None:
        """Write the last shard and the index."""
        self._flush()
        weight_map: dict[str, str] = {}
        count = len(self._written)
        for number, (path, names) in enumerate(self._written, start=1):
            final = path.with_name(f'model-{number:05d}-of-{count:05d}.safetensors')
            path.rename(final)
            weight_map |= dict.fromkeys(names, final.name)
        index = {'metadata': {'total_size': self.num_bytes}, 'weight_map': weight_map}
        write_json(self._folder / INDEX_FILE, index)

    def _flush(self) -> None:
        path = self._folder / f'shard-{len(self._written)}.safetensors'
        save_file(self._pending, path, metadata={'format': 'pt'})
        self._written.append((path, list(self._pending)))
        self._pending, self._pending_bytes = {}, 0


def write_weights(
    folder: Path,
    steps: Sequence[Step],
    source: Source,
    *,
    total_bytes: int,
    on_progress: OnProgress,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Convert and write all tensors of a checkpoint, in shards with an index.

    Args:
        folder: An empty folder.
        steps: Steps that passed `check_steps`.
        source: Tensors of the published checkpoint.
        total_bytes: The number that `check_steps` returned.
        on_progress: Called after every step.
        shard_bytes: Largest shard.
    """
    writer = _ShardWriter(folder, shard_bytes)
    for step in steps:
        tensors = step.convert([source.read(name) for name in step.sources])
        for name, tensor in zip(step.targets, tensors, strict=True):
            writer.add(name, tensor)
        on_progress(writer.num_bytes, total_bytes)
    writer.finish()
