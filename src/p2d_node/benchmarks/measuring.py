"""What every benchmark shares: number formats, percentiles, the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import os
from pathlib import Path
import platform
import time
from typing import Any, TypeVar

from p2d_node.benchmarks.plans import DTYPE_NAMES
from p2d_node.errors import ConfigError
from p2d_node.memory_limit import available_bytes
import torch

T = TypeVar('T')

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


def check_device(device: str) -> None:
    """Raise `ConfigError` where `device` is a GPU and torch sees none."""
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise ConfigError(f'device: got {device!r}, but torch sees no GPU; allowed: cpu')


def check_memory(name: str, value: object, num_bytes: float, device: str) -> None:
    """Check that a benchmark fits into the memory that is free, before it is tried.

    Args:
        name: The parameter that decides how much is needed, for the message.
        value: Its value.
        num_bytes: Estimate of what is needed.
        device: The torch device.

    Raises:
        ConfigError: There is less.
    """
    free = torch.cuda.mem_get_info()[0] if device.startswith('cuda') else available_bytes()
    if num_bytes > free:
        raise ConfigError(
            f'{name}: got {value}, which needs about {num_bytes / 2**30:.1f} GiB of memory; '
            f'allowed: what fits into the {free / 2**30:.1f} GiB that are free; lower it'
        )


def synchronize(device: torch.device) -> None:
    """Wait until the GPU has finished its work; returns at once on a CPU."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def time_ms(device: torch.device, work: Callable[[], T]) -> tuple[float, float, T]:
    """Return the duration of `work`, its processor time, and its result."""
    synchronize(device)
    started_ns, started_cpu_ns = time.perf_counter_ns(), time.process_time_ns()
    result = work()
    synchronize(device)
    cpu_ms = (time.process_time_ns() - started_cpu_ns) / 1e6
    return (time.perf_counter_ns() - started_ns) / 1e6, cpu_ms, result


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def describe_machine(device: str) -> dict[str, Any]:
    """Return the names and versions that figures depend on.

    Args:
        device: The torch device that was measured.
    """
    on_gpu = device.startswith('cuda')
    return {
        'device': torch.cuda.get_device_name(device) if on_gpu else processor_name(),
        'cpu': processor_name(),
        'cpu_cores': os.cpu_count(),
        'torch': torch.__version__,
        'torch_threads': torch.get_num_threads(),
        'python': platform.python_version(),
    }


def processor_name() -> str:
    """Return what Linux calls the processor, else its architecture."""
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.machine()
