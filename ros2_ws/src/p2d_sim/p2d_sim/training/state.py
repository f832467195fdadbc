"""Checkpoints of a run, as safetensors and JSON; an interruption keeps the last complete one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
import math
from pathlib import Path
from typing import Any

from p2d_node.durable_files import read_json_object, refuse_link, write_faults, write_json
from p2d_node.errors import ConfigError
from p2d_node.whole_folders import new_folder, publish
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import nn, Tensor

from p2d_sim.training.plan import STAGES

POINTER, WEIGHTS = 'latest.json', 'weights.safetensors'
NEXT_STEP = 'name another folder, or remove this one to begin anew'
MAX_STEP = 10**9


def save_state(
    folder: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: dict[str, Any],
) -> None:
    """Write weights, optimizer state and progress, then delete the previous checkpoint.

    Args:
        folder: Folder of the run.
        module: All trained parts.
        optimizers: The optimizers; `load_optimizers` needs the same order.
        progress: `stage`, `step` and `spent_s`.

    Raises:
        ConfigError: The files cannot be written.
    """
    name = _name(progress['stage'], progress['step'])
    previous = read_progress(folder)
    with write_faults(f'run: {folder / name}', NEXT_STEP):
        # One that an interrupted run wrote, but did not name any more.
        _remove_state(folder / name)
        with new_folder(folder, '.state-') as unfinished:
            weights = {k: v.contiguous().clone() for k, v in module.state_dict().items()}
            save_file(weights, unfinished / WEIGHTS)
            for number, optimizer in enumerate(optimizers):
                save_file(_flatten(optimizer), unfinished / _optimizer_file(number))
            publish(unfinished, folder / name)
        write_json(folder / POINTER, {**progress, 'state': name})
    if previous is not None and previous['state'] != name:
        _remove_state(folder / previous['state'])


def _remove_state(path: Path) -> None:
    """Remove the files of a checkpoint, and the folder if nothing else is in it."""
    if path.is_symlink():
        return
    for file in (path / WEIGHTS, *path.glob(_optimizer_file('[0-9]'))):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        path.rmdir()


def read_progress(folder: Path) -> dict[str, Any] | None:
    """Return the progress of the run in `folder`; None if there is no run.

    Raises:
        ConfigError: The file is not one that `save_state` wrote.
    """
    path = folder / POINTER
    if not path.is_file():
        return None
    progress = read_json_object(path, parameter='run', next_step=NEXT_STEP)
    match progress:
        case {'stage': str(stage), 'step': int(step), 'spent_s': float(spent_s), 'state': state}:
            is_possible = 0 <= step <= MAX_STEP and math.isfinite(spent_s)
            if stage in STAGES and is_possible and state == _name(stage, step):
                return progress
    raise ConfigError(f'run: {path} is not that of a training run; {NEXT_STEP}')


def _name(stage: str, step: int) -> str:
    return f'{stage}-{step:06d}'


def _optimizer_file(number: int | str) -> str:
    return f'optimizer{number}.safetensors'


def load_weights(folder: Path, state: str, module: nn.Module) -> None:
    """Load the weights of the checkpoint `state`.

    Raises:
        ConfigError: The file is missing or damaged, or of a model of another size.
    """
    path = folder / state / WEIGHTS
    with _damage_faults(path):
        module.load_state_dict(load_file(path))


@contextmanager
def _damage_faults(path: Path) -> Iterator[None]:
    """Refuse a link or pipe in place of a file, and turn what its content raises into one line."""
    refuse_link(path, 'run', NEXT_STEP)
    if not path.is_file():  # of a pipe, reading would wait for ever
        raise ConfigError(f'run: {path} is missing or is no file; {NEXT_STEP}')
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as err:
        reason = str(err).strip().partition('\n')[0]
        raise ConfigError(f'run: {path} does not fit this run: {reason}; {NEXT_STEP}') from err


def load_optimizers(folder: Path, state: str, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Load the state of the optimizers of the checkpoint `state`.

    Raises:
        ConfigError: A file is missing or damaged, or of other optimizers.
    """
    for number, optimizer in enumerate(optimizers):
        path = folder / state / _optimizer_file(number)
        with _damage_faults(path):
            _load_optimizer(optimizer, load_file(path))


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    content = optimizer.state_dict()
    content['state'] = {}
    for key, value in tensors.items():
        index, name = key.split('.', 1)
        content['state'].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(content)


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f'{index}.{name}': value.contiguous().clone()
        for index, slot in optimizer.state_dict()['state'].items()
        for name, value in slot.items()
        if isinstance(value, Tensor)
    }
