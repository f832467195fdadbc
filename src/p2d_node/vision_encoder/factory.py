"""Makes the vision encoder of a backend; `auto` takes the first backend that works."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from p2d_node.config import EncoderConfig
from p2d_node.errors import BackendUnavailableError, EngineMismatchError
from p2d_node.vision_encoder.base import VisionEncoder
from p2d_node.vision_encoder.engine_checks import open_engine, OpenedEngine
from p2d_node.vision_encoder.engine_store import (
    EngineRequest,
    list_engines,
    rebuild_command,
    resolve_engine_dir,
)
from p2d_node.vision_encoder.machine import (
    BACKENDS,
    require_installed,
    runtime_version,
    this_machine,
)
from p2d_node.vision_encoder.onnxruntime_encoder import OnnxruntimeVisionEncoder
from p2d_node.vision_encoder.tensorrt_encoder import TensorrtVisionEncoder
from p2d_node.vision_encoder.torch_encoder import TorchVisionEncoder
import torch
from torch import nn

ENGINE_ENCODERS: Mapping[str, Callable[..., VisionEncoder]] = {
    'tensorrt': TensorrtVisionEncoder,
    'tensorrt_rtx': TensorrtVisionEncoder,
    'onnxruntime': OnnxruntimeVisionEncoder,
}


@dataclass(frozen=True, slots=True)
class ChosenEncoder:
    """The chosen encoder.

    Attributes:
        encoder: The encoder.
        refused: With backend `auto`: the backends that were tried before, and why they do not run.
    """

    encoder: VisionEncoder
    refused: Mapping[str, str]


def make_vision_encoder(
    config: EncoderConfig,
    request: EngineRequest,
    module: nn.Module,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> ChosenEncoder:
    """Make the encoder that `config` names.

    Args:
        config: Backend and engine folder.
        request: The model and the cameras that an engine must fit.
        module: The checkpoint's vision tower and projector.
        dtype: Number format of the language model.
        device: Device of the language model.

    Raises:
        BackendUnavailableError: The named backend is not installed.
        EngineMismatchError: The named backend has no engine that may be loaded here.
    """
    refused: dict[str, str] = {}
    backends = BACKENDS if config.backend == 'auto' else (config.backend,)
    for backend in backends:
        if backend == 'torch':
            break
        try:
            encoder = load_engine(config, backend, request, dtype=dtype, device=device)
        except (BackendUnavailableError, EngineMismatchError) as err:
            if config.backend != 'auto':
                raise
            refused[backend] = str(err)
        else:
            return ChosenEncoder(encoder, refused)
    return ChosenEncoder(TorchVisionEncoder(module, dtype, device, config.weights), refused)


def load_engine(
    config: EncoderConfig,
    backend: str,
    request: EngineRequest,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> VisionEncoder:
    """Load the newest engine of `backend` that passes every check.

    Raises:
        BackendUnavailableError: The runtime is not installed.
        EngineMismatchError: There is no engine, or no engine passes; the message is about the
            newest.
    """
    engine_dir = resolve_engine_dir(config.engine_dir)
    folders = list_engines(engine_dir, request.model_name, backend)
    if not folders:
        # Without importing it: without an engine a start need not wait for a runtime.
        require_installed(backend)
        raise EngineMismatchError(
            f'no {backend} engine of {request.model_name} in {engine_dir}; build one: '
            + rebuild_command(engine_dir, backend, request.model_folder, request.num_views, None)
        )
    version, machine = runtime_version(backend), this_machine(device)
    refusals: list[EngineMismatchError] = []
    for folder in folders:
        try:
            opened = open_engine(
                engine_dir,
                folder,
                request,
                machine,
                runtime_version=version,
                allow_unverified=config.allow_unverified,
            )
            return _start(backend, folder, opened, request, dtype=dtype, device=device)
        except EngineMismatchError as err:
            refusals.append(err)
    raise refusals[0]


def _start(
    backend: str,
    folder: Path,
    opened: OpenedEngine,
    request: EngineRequest,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> VisionEncoder:
    try:
        return ENGINE_ENCODERS[backend](opened.manifest, opened.files, dtype=dtype, device=device)
    except EngineMismatchError as err:
        command = rebuild_command(
            folder.parents[1], backend, request.model_folder, request.num_views, opened.manifest
        )
        raise EngineMismatchError(f'engine {folder}: {err}; rebuild it: {command}') from err
