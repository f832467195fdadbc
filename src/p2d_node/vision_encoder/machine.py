"""The properties of this machine that an engine must fit: runtime version, GPU, driver."""

from __future__ import annotations

from dataclasses import dataclass
import hashlib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
import platform
import re
from types import ModuleType

from p2d_node.errors import BackendUnavailableError
import torch

BACKENDS = ('tensorrt', 'tensorrt_rtx', 'onnxruntime', 'torch')
"""All backends, in the order in which `auto` tries them. Except for torch, a backend has the name
of its Python module."""

INSTALL_HINTS = {
    'tensorrt': 'it comes with JetPack (python3-libnvinfer), or install tensorrt from NVIDIA',
    'tensorrt_rtx': 'pip install tensorrt-rtx (x86-64)',
    'onnxruntime': 'pip install onnxruntime onnx',
    'onnx': 'pip install onnx',
}

DRIVER_FILES = (Path('/proc/driver/nvidia/version'), Path('/etc/nv_tegra_release'))
IDENTITY_FILES = (Path('/etc/machine-id'), Path('/proc/device-tree/serial-number'))


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine.

    Attributes:
        gpu_name: The GPU; empty without a GPU.
        compute_capability: Generation of the GPU, such as `8.7`; empty without a GPU.
        driver: Version of the GPU's driver; empty without a GPU.
        fingerprint: Identifies this machine and this GPU in a verification.
    """

    gpu_name: str
    compute_capability: str
    driver: str
    fingerprint: str


def this_machine(device: torch.device) -> Machine:
    """Describe this machine with `device` as its GPU."""
    gpu_name = capability = driver = gpu_id = ''
    if device.type == 'cuda' and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(device)
        gpu_name, gpu_id = properties.name, str(getattr(properties, 'uuid', ''))
        capability = f'{properties.major}.{properties.minor}'
        driver = _driver_version()
    facts = [platform.node(), platform.machine(), gpu_name, gpu_id]
    facts += [path.read_text(errors='replace') for path in IDENTITY_FILES if path.is_file()]
    fingerprint = hashlib.sha256('\n'.join(facts).encode()).hexdigest()
    return Machine(gpu_name, capability, driver, fingerprint)


def _driver_version() -> str:
    for path in DRIVER_FILES:
        if path.is_file():
            first = path.read_text(errors='replace').splitlines()[0]
            number = re.search(r'\d+\.\d+(\.\d+)?', first)
            return number.group() if number else first
    return f'CUDA {torch.version.cuda}'


def require_installed(backend: str) -> None:
    """Raise `BackendUnavailableError` if the Python module of `backend` is not installed."""
    if find_spec(backend) is None:
        raise BackendUnavailableError(
            f'encoder.backend: {backend} is not installed; {INSTALL_HINTS[backend]}'
        )


def import_runtime(backend: str) -> ModuleType:
    """Import the Python module of `backend`.

    Raises:
        BackendUnavailableError: It is not installed, or its libraries do not load.
    """
    try:
        return import_module(backend)
    except (ImportError, OSError, RuntimeError) as err:
        raise BackendUnavailableError(
            f'encoder.backend: {backend} does not load: {err}; {INSTALL_HINTS[backend]}'
        ) from err


def runtime_version(backend: str) -> str:
    """Return the version of an installed runtime; see `import_runtime` for errors."""
    return str(import_runtime(backend).__version__)
