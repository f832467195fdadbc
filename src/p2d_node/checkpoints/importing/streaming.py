"""Tensors of a published checkpoint come in one by one; shards of the new checkpoint go out.

Never more than one shard of each is in memory, and nothing is read before every name and shape of
the result is known to be right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

from p2d_node.errors import ConfigError
from safetensors import safe_open, SafetensorError
from safetensors.torch import save_file
import torch
from torch import Tensor

INDEX_FILE = 'model.safetensors.index.json'
SHARD_BYTES = 1 << 30
"""Largest shard that is written; a tensor that is larger gets one of its own."""

NUM_NAMED = 5
"""Names that a refusal lists of each kind."""

DTYPES = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
}

Convert = Callable[[Sequence[Tensor]], Sequence[Tensor]]
OnProgress = Callable[[int, int], None]
"""Gets the bytes written so far, and those to write."""


def keep(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return `tensors`: what a step converts with that only renames."""
    return tensors


@dataclass(frozen=True, slots=True)
class Step:
    """How some tensors of the source become some of the new checkpoint.

    Attributes:
        sources: Names in the source.
        targets: Names in the new checkpoint.
        convert: Tensors of `sources` to those of `targets`; also works on the meta device.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    convert: Convert = keep


class Source:
    """The safetensors files of one or more folders, as one set of named tensors."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Read the headers of `files`; later files win.

        Raises:
            ConfigError: A file that is cut short or no safetensors file, or a quantised tensor.
        """
        self._files: dict[str, Path] = {}
        self._metas: dict[str, Tensor] = {}
        for path in files:
            self._read_header(path)

    def _read_header(self, path: Path) -> None:
        try:
            with safe_open(path, framework='pt') as file:
                for name in file.keys():  # noqa: SIM118 - it is no dict
                    entry = file.get_slice(name)
                    kind = entry.get_dtype()
                    if kind not in DTYPES:
                        raise ConfigError(
                            f'{path}: {name} is stored as {kind}, allowed: {", ".join(DTYPES)}; '
                            'import the checkpoint that was not quantised'
                        )
                    self._files[name] = path
                    self._metas[name] = torch.empty(
                        entry.get_shape(), dtype=DTYPES[kind], device='meta'
                    )
        except (OSError, SafetensorError) as err:
            raise ConfigError(
                f'{path}: not a whole safetensors file: {err}; copy it again'
            ) from err

    @property
    def names(self) -> Sequence[str]:
        """Names of all tensors, file by file."""
        return tuple(self._files)

    def meta(self, name: str) -> Tensor:
        """Return a tensor of the meta device with the shape and dtype of `name`."""
        return self._metas[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of `name`.

        Raises:
            ConfigError: There is no such tensor.
        """
        if name not in self._metas:
            raise ConfigError(f'the checkpoint has no {name}; is it of the format you named?')
        return tuple(self._metas[name].shape)

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        with safe_open(self._files[name], framework='pt') as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def main_dtype(self) -> torch.dtype:
        """Return the dtype that most of the values have."""
        sizes: dict[torch.dtype, int] = {}
        for meta in self._metas.values():
            sizes[meta.dtype] = sizes.get(meta.dtype, 0) + meta.numel()
        return max(sizes, key=lambda dtype: sizes[dtype])


def find_shards(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint folder, in order.

    Raises:
        ConfigError: No folder, no such file, or one that the index names is missing.
    """
    if not folder.is_dir():
        raise ConfigError(f'got {str(folder)!r}, which is not a folder; name a checkpoint folder')
    index = folder / INDEX_FILE
    if index.is_file():
        weight_map = read_json(index).get('weight_map')
        if not isinstance(weight_map, dict):
            raise ConfigError(f'{index} has no weight_map; copy it again')
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if not (folder / name).is_file():
                raise ConfigError(
                    f'{folder}: {name} is missing, which {INDEX_FILE} names; copy it again'
                )
        return [folder / name for name in names]
    shards = sorted(folder.glob('*.safetensors'))
    if not shards:
        raise ConfigError(_no_weights(folder))
    return shards


def _no_weights(folder: Path) -> str:
    pickles = sorted(folder.glob('*.bin'))
    if not pickles:
        return f'{folder}: no *.safetensors file in it; copy the whole checkpoint'
    name = pickles[0].stem
    return (
        f'{folder}: got {len(pickles)} pickled *.bin files, allowed: safetensors, for loading a '
        'pickle may run code; convert each, where you trust them, with python -c "import torch, '
        f"safetensors.torch as s; s.save_file(torch.load('{name}.bin', weights_only=True), "
        f"'{name}.safetensors')\""
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: It is missing or is not one.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError as err:
        raise ConfigError(f'{path} is missing; copy the whole checkpoint folder') from err
    except (OSError, ValueError, RecursionError) as err:
        raise ConfigError(f'{path} is not valid JSON: {err}; copy it again') from err
    if not isinstance(content, dict):
        raise ConfigError(f'{path} is not a JSON object; copy it again')
    return content


def check_steps(
    steps: Sequence[Step],
    source: Source,
    wanted: Mapping[str, Tensor],
    unexpected: Sequence[str],
) -> int:
    """Check that `steps` make exactly the tensors that the model has, without reading any.

    Args:
        steps: All steps of an import.
        source: Where they take from.
        wanted: The model's state dict; only shapes count.
        unexpected: Tensors of the source that no step takes.

    Returns:
        The number of bytes that will be written.

    Raises:
        ConfigError: Names that are missing or not expected, or shapes that do not fit.
    """
    made = {name: tensor for step in steps for name, tensor in _dry_run(step, source).items()}
    missing = [name for name in wanted if name not in made]
    left = [*unexpected, *(name for name in made if name not in wanted)]
    if missing or left:
        raise ConfigError(
            f'{_listed(missing, "missing")}, {_listed(left, "not expected")}; the checkpoint is '
            'not of the format you named, or config.json is not its own'
        )
    wrong = [
        f'{name} {list(made[name].shape)} instead of {list(tensor.shape)}'
        for name, tensor in wanted.items()
        if made[name].shape != tensor.shape
    ]
    if wrong:
        raise ConfigError(f'{_listed(wrong, "of another shape than config.json says")}')
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
            f'{shapes}: does not fit config.json, which belongs to another checkpoint'
        ) from err


def _listed(names: Sequence[str], what: str) -> str:
    if not names:
        return f'0 weights are {what}'
    rest = ', ...' if len(names) > NUM_NAMED else ''
    return f'{len(names)} weights are {what}: {", ".join(names[:NUM_NAMED])}{rest}'


class _ShardWriter:
    """Collects tensors and writes them, a shard at a time, into `folder`."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._written: list[tuple[Path, list[str]]] = []
        self.num_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a tensor; what was taken before may be written first."""
        if self._pending and self._pending_bytes + tensor.nbytes > self._shard_bytes:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self._pending_bytes += tensor.nbytes
        self.num_bytes += tensor.nbytes

    def finish(self) -> None:
        """Write the rest and the index."""
        self._flush()
        weight_map: dict[str, str] = {}
        count = len(self._written)
        for number, (path, names) in enumerate(self._written, start=1):
            final = path.with_name(f'model-{number:05d}-of-{count:05d}.safetensors')
            path.rename(final)
            weight_map |= dict.fromkeys(names, final.name)
        index = {'metadata': {'total_size': self.num_bytes}, 'weight_map': weight_map}
        (self._folder / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding='utf-8')

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
        steps: What `check_steps` found right.
        source: Where they take from.
        total_bytes: What `check_steps` returned.
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
