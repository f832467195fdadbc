"""From the name of a backend to its vision encoder, with the reasons against the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from p2d_node.config import EncoderConfig
from p2d_node.errors import BackendUnavailableError, EngineMismatchError
from p2d_node.vision_encoder.base import VisionEncoder
from p2d_node.vision_encoder.engine_store import (
    EngineRequest,
    list_engines,
    open_engine,
    rebuild_command,
    resolve_engine_dir,
)
from p2d_node.vision_encoder.machine import BACKENDS, runtime_version, this_machine
from p2d_node.vision_encoder.manifest import EngineManifest
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
    """An encoder and why it was taken.

    Attributes:
        encoder: The encoder.
        refused: With backend auto: the backends before it and why they do not run.
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
    """Return the encoder that `config` asks for.

    Args:
        config: Backend and engine folder.
        request: What an engine must be for.
        module: The checkpoint's vision tower and projector.
        dtype: Number format of the language model.
        device: Where the language model runs.

    Raises:
        BackendUnavailableError: The backend that is named is not installed.
        EngineMismatchError: It has no engine that may be loaded here.
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
    return ChosenEncoder(TorchVisionEncoder(module, dtype, device), refused)


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
        EngineMismatchError: No engine was built, or why the newest one may not be loaded.
    """
    version = runtime_version(backend)
    engine_dir = resolve_engine_dir(config.engine_dir)
    folders = list_engines(engine_dir, request.model_name, backend)
    if not folders:
        raise EngineMismatchError(
            f'no {backend} engine of {request.model_name} in {engine_dir}; build one: '
            + rebuild_command(engine_dir, backend, request.model_folder, request.num_views, None)
        )
    machine = this_machine(device)
    refusals: list[EngineMismatchError] = []
    for folder in folders:
        try:
            manifest = open_engine(
                engine_dir,
                folder,
                request,
                machine,
                runtime_version=version,
                allow_unverified=config.allow_unverified,
            )
            return _start(backend, folder, manifest, request, dtype=dtype, device=device)
        except EngineMismatchError as err:
            refusals.append(err)
    raise refusals[0]


def _start(
    backend: str,
    folder: Path,
    manifest: EngineManifest,
    request: EngineRequest,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> VisionEncoder:
    try:
        return ENGINE_ENCODERS[backend](folder, manifest, dtype=dtype, device=device)
    except EngineMismatchError as err:
        command = rebuild_command(
            folder.parents[1], backend, request.model_folder, request.num_views, manifest
        )
        raise EngineMismatchError(f'engine {folder}: {err}; rebuild it: {command}') from err
