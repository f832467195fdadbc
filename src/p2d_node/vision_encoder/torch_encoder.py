"""The reference vision encoder: the modules of the checkpoint in torch."""

from __future__ import annotations

from p2d_node.vision_encoder.base import EncoderInput
import torch
from torch import nn, Tensor


class TorchVisionEncoder:
    """Runs vision tower and projector in torch, the reference that engines are compared with.

    Use it from one thread at a time.
    """

    def __init__(
        self, module: nn.Module, dtype: torch.dtype, device: torch.device, weights: str = 'as_is'
    ) -> None:
        """Wrap `module`, which maps pixel_values to visual_tokens.

        Args:
            module: Vision tower and projector, already on `device` in `dtype`.
            dtype: Number format of the weights.
            device: Device of the weights.
            weights: Their quantisation, for the identity.
        """
        quantised = '' if weights == 'as_is' else f' {weights}'
        self.identity = f'torch {str(dtype).removeprefix("torch.")}{quantised} {device}'
        self.input_spec = EncoderInput()
        self._module = module
        self._dtype = dtype

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode the views of one sweep; see `VisionEncoder.encode`."""
        visual_tokens: Tensor = self._module(frames.to(self._dtype))
        return visual_tokens
