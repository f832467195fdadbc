"""What every benchmark shares: number formats, percentiles, the machine."""

from __future__ import annotations

from collections.abc import Sequence
import os
from pathlib import Path
import platform
from typing import Any

from p2d_node.benchmarks.plans import DTYPE_NAMES
from p2d_node.errors import ConfigError
import torch

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}


def check_device(device: str) -> None:
    """Raise `ConfigError` where `device` is a GPU and torch sees none."""
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise ConfigError(f'device: got {device!r}, but torch sees no GPU; allowed: cpu')


def synchronize(device: torch.device) -> None:
    """Wait until the GPU has finished its work; returns at once on a CPU."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


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
