"""From the name of a backend to its vision encoder."""

from __future__ import annotations

from p2d_node.config import EncoderConfig
from p2d_node.errors import ConfigError
from p2d_node.vision_encoder.base import VisionEncoder
from p2d_node.vision_encoder.torch_encoder import TorchVisionEncoder
import torch
from torch import nn


def make_vision_encoder(
    config: EncoderConfig, module: nn.Module, *, dtype: torch.dtype, device: torch.device
) -> VisionEncoder:
    """Return the encoder that `config` asks for.

    Args:
        config: Backend and engine folder.
        module: The checkpoint's vision tower and projector.
        dtype: Number format of the language model.
        device: Where the language model runs.

    Raises:
        ConfigError: No such backend.
    """
    if config.backend == 'torch':
        return TorchVisionEncoder(module, dtype, device)
    raise ConfigError(f'encoder.backend: got {config.backend!r}, allowed: torch')
