"""The plan of an engine build: what is built, for which backend, and with which options."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2d_node.engine_build.export_plan import ExportPlan
from p2d_node.errors import BackendUnavailableError, ConfigError
from p2d_node.vision_encoder.machine import Machine, runtime_version
from p2d_node.vision_encoder.tensorrt_api import BuildOptions, TensorrtApi
import torch

ENGINE_BACKENDS = ('tensorrt', 'tensorrt_rtx', 'onnxruntime')

DEFAULT_PRECISION = {'tensorrt': 'fp16', 'tensorrt_rtx': 'fp16', 'onnxruntime': 'fp32'}


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """What is built.

    Attributes:
        export: The model and the engine's input.
        backend: Runtime that will load the engine.
        options: Options of a TensorRT build; ONNX Runtime ignores them.
    """

    export: ExportPlan
    backend: str
    options: BuildOptions = field(default_factory=BuildOptions)

    def __post_init__(self) -> None:
        """Check the values."""
        if self.backend not in ENGINE_BACKENDS:
            raise ConfigError(
                f'backend: got {self.backend!r}, allowed: {", ".join(ENGINE_BACKENDS)}'
            )
        if self.backend == 'onnxruntime' and self.export.precision == 'bf16':
            raise ConfigError("precision: got 'bf16', allowed for onnxruntime: fp32, fp16")
        if self.options.compute_capabilities and self.backend != 'tensorrt_rtx':
            raise ConfigError(
                f'compute_capability: {self.backend} builds for this machine; only tensorrt_rtx '
                'builds ahead of time'
            )


def choose_backend(device: torch.device) -> str:
    """Return the first backend that is installed and can build for this machine.

    Raises:
        BackendUnavailableError: No backend is installed.
    """
    reasons = []
    for backend in ENGINE_BACKENDS if device.type == 'cuda' else ('onnxruntime',):
        try:
            runtime_version(backend)
        except BackendUnavailableError as err:
            reasons.append(str(err))
        else:
            return backend
    raise BackendUnavailableError('; '.join(reasons))


def require_target(plan: BuildPlan, machine: Machine) -> None:
    """Check that this machine can build for the target, before an export that may take minutes.

    Raises:
        BackendUnavailableError: The runtime does not load.
        ConfigError: There is no GPU to build for, or an unknown compute capability is asked for.
    """
    if plan.options.compute_capabilities:
        TensorrtApi(plan.backend).find_compute_capabilities(plan.options.compute_capabilities)
    elif plan.backend == 'tensorrt_rtx' and not machine.compute_capability:
        raise ConfigError(
            'compute_capability: got none, but this machine has no GPU to build for; name the '
            'GPU generations, for example 8.6,8.9'
        )
    elif plan.backend == 'tensorrt' and not machine.gpu_name:
        raise ConfigError(
            'backend: tensorrt builds on the GPU that runs the engine, and this machine has no '
            'GPU; build on the target, or use tensorrt_rtx or onnxruntime'
        )
