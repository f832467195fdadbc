"""Checkpoints of a run, as safetensors and JSON; an interruption keeps the last complete one."""

from __future__ import annotations

from collections.abc import Sequence
import json
import os
from pathlib import Path
import shutil
from typing import Any

from p2d_node.durable_files import read_json_object
from p2d_node.errors import ConfigError
from safetensors.torch import load_file, save_file
import torch
from torch import nn, Tensor

from p2d_sim.training.plan import STAGES

POINTER = 'latest.json'
NEXT_STEP = 'name another folder, or remove this one to begin anew'


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
    """
    name = _name(progress['stage'], progress['step'])
    target = folder / name
    unfinished = folder / f'.{name}'
    for path in (unfinished, target):
        shutil.rmtree(path, ignore_errors=True)
    unfinished.mkdir(parents=True)
    weights = {key: value.contiguous().clone() for key, value in module.state_dict().items()}
    save_file(weights, unfinished / 'weights.safetensors')
    for number, optimizer in enumerate(optimizers):
        save_file(_flatten(optimizer), unfinished / f'optimizer{number}.safetensors')
    os.replace(unfinished, target)
    pointer = folder / f'.{POINTER}'
    pointer.write_text(json.dumps({**progress, 'state': name}, indent=2), encoding='utf-8')
    os.replace(pointer, folder / POINTER)
    for path in folder.glob(f'{progress["stage"]}-*'):
        if path != target:
            shutil.rmtree(path, ignore_errors=True)


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
        case {'stage': str(stage), 'step': int(step), 'spent_s': float(), 'state': str(state)}:
            if stage in STAGES and state == _name(stage, step):
                return progress
    raise ConfigError(f'run: {path} is not that of a training run; {NEXT_STEP}')


def _name(stage: str, step: int) -> str:
    return f'{stage}-{step:06d}'


def load_weights(folder: Path, state: str, module: nn.Module) -> None:
    """Load the weights of the checkpoint `state`."""
    module.load_state_dict(load_file(folder / state / 'weights.safetensors'))


def load_optimizers(folder: Path, state: str, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Load the state of the optimizers of the checkpoint `state`."""
    for number, optimizer in enumerate(optimizers):
        tensors = load_file(folder / state / f'optimizer{number}.safetensors')
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
