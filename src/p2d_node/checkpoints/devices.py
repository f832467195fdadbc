"""Converts the parameters `device`, `dtype` and `num_threads` to what torch expects."""

from __future__ import annotations

from p2d_node.errors import BackendUnavailableError, ConfigError
import torch

DEVICES = 'auto, cpu, cuda'


def choose_device(name: str) -> torch.device:
    """Convert the parameter `device` to a torch device; `auto` is a GPU if there is one.

    Raises:
        ConfigError: `name` is not a device name, or names a GPU other than the first.
        BackendUnavailableError: `name` is a GPU and there is none.
    """
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise ConfigError(f'device: got {name!r}, allowed: {DEVICES}') from err
    if device.type not in ('cpu', 'cuda'):
        raise ConfigError(f'device: got {name!r}, allowed: {DEVICES}')
    if device.type == 'cpu' and device.index:
        raise ConfigError(f'device: got {name!r}, allowed: {DEVICES}; set device to cpu')
    if device.index:
        # Kernels, graphs and engines run on the current GPU of the thread, which is the first.
        raise ConfigError(
            f'device: got {name!r}, allowed: {DEVICES}; choose another GPU by the environment: '
            f'CUDA_VISIBLE_DEVICES={device.index}'
        )
    if device.type == 'cuda' and not torch.cuda.device_count():
        raise BackendUnavailableError(
            f'device: got {name!r}, but torch sees no GPU; set device to cpu, or install the '
            'torch build of your GPU'
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Convert the parameter `dtype` to a torch dtype.

    `auto` is bfloat16 on a GPU and float32 on the CPU.

    Raises:
        ConfigError: `name` is not a torch dtype.
    """
    if name == 'auto':
        return torch.bfloat16 if device.type == 'cuda' else torch.float32
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f'dtype: got {name!r}, allowed: auto or a torch dtype')
    return dtype


def default_num_threads() -> int:
    """Return torch's number of threads less one, which is left for the camera callbacks."""
    return max(1, torch.get_num_threads() - 1)
