"""Converts `device`, `dtype` and `num_threads` to what torch expects; threads for its work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from p2d_node.errors import BackendUnavailableError, ConfigError
import torch

DEVICES = 'auto, cpu, cuda'

FIRST_NUM_THREADS = torch.get_num_threads()
"""Before `num_threads` sets another number, which torch then takes for its own."""

BFLOAT16_INSTRUCTIONS = ('avx512_bf16', 'amx_bf16')
INT8_INSTRUCTIONS = ('avx512_vnni', 'avx_vnni', 'amx_int8')
"""As `torch.cpu.get_capabilities` names them."""


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

    `auto` is bfloat16 on a GPU and on a CPU that multiplies bfloat16, float32 on others.

    Raises:
        ConfigError: `name` is not a torch dtype.
    """
    if name == 'auto':
        is_fast = device.type == 'cuda' or multiplies_bfloat16()
        return torch.bfloat16 if is_fast else torch.float32
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f'dtype: got {name!r}, allowed: auto or a torch dtype')
    return dtype


def multiplies_bfloat16() -> bool:
    """Tell whether this CPU has instructions that multiply bfloat16: AVX512-BF16 or AMX.

    On others torch converts it to float32 and back, which is slower than float32.
    """
    return _has_one_of(BFLOAT16_INSTRUCTIONS)


def adds_int8_products() -> bool:
    """Tell whether this CPU adds products of 8-bit numbers in 32 bits.

    Others add two of them in 16 bits, which overflows if both numbers use all their bits.
    """
    return _has_one_of(INT8_INSTRUCTIONS)


def _has_one_of(names: Sequence[str]) -> bool:
    capabilities: Mapping[str, object] = getattr(torch.cpu, 'get_capabilities', dict)()
    return any(capabilities.get(name) is True for name in names)


def default_num_threads() -> int:
    """Return torch's first number of threads less one, which is left for the camera callbacks."""
    return max(1, FIRST_NUM_THREADS - 1)


def one_compute_thread(name: str) -> ThreadPoolExecutor:
    """Return a thread for torch, in which numbers below the normal ones (1e-38) are zero.

    A processor takes a hundred times as long for them, and weights may have them. The threads that
    torch starts from it are alike; those of the caller stay as they are.
    """
    return ThreadPoolExecutor(
        max_workers=1,
        thread_name_prefix=name,
        initializer=torch.set_flush_denormal,
        initargs=(True,),
    )
