"""The input and output buffers of an engine, allocated once."""

from __future__ import annotations

from p2d_node.errors import EngineMismatchError, InferenceError
from p2d_node.vision_encoder.base import EncoderInput, FRAMES
from p2d_node.vision_encoder.manifest import EngineManifest
import torch
from torch import Tensor

INPUT_NAME, OUTPUT_NAME = 'frames', 'visual_tokens'

PRECISIONS = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
"""TensorRT's names of number formats."""


class EngineBuffers:
    """Input and output of an engine with a static batch.

    Attributes:
        input_spec: The input of the engine.
        frames: The input buffer, uint8 [num_views, height, width, 3] or float32 [num_views, 3,
            height, width].
        visual_tokens: The output buffer, [num_views, tokens, hidden], in the engine's precision.
    """

    def __init__(self, manifest: EngineManifest, device: torch.device) -> None:
        """Allocate both buffers on `device`."""
        height, width = manifest.height, manifest.width
        is_frames = manifest.input_kind == FRAMES
        self.input_spec = EncoderInput(FRAMES, height, width) if is_frames else EncoderInput()
        shape = (height, width, 3) if is_frames else (3, height, width)
        dtype = torch.uint8 if is_frames else torch.float32
        self.frames = torch.zeros(manifest.num_views, *shape, dtype=dtype, device=device)
        self.visual_tokens = torch.zeros(
            manifest.num_views,
            manifest.num_tokens,
            manifest.hidden_size,
            dtype=PRECISIONS[manifest.precision],
            device=device,
        )

    def check(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
        """Check that a tensor of the loaded engine fits its buffer.

        Raises:
            EngineMismatchError: Its name, shape or dtype differs from the manifest.
        """
        buffer = {INPUT_NAME: self.frames, OUTPUT_NAME: self.visual_tokens}.get(name)
        if buffer is None or tuple(buffer.shape) != shape or buffer.dtype != dtype:
            expected = 'no such tensor' if buffer is None else f'{buffer.dtype} {[*buffer.shape]}'
            raise EngineMismatchError(
                f'the engine has {name} as {dtype} {list(shape)}, its manifest says {expected}'
            )

    def fill(self, frames: Tensor) -> int:
        """Copy the views of one sweep into the input buffer.

        Args:
            frames: As `input_spec` says, with at most `num_views` views.

        Returns:
            The number of views.

        Raises:
            InferenceError: The shape does not fit the buffer.
        """
        num_views = frames.shape[0]
        if num_views > self.frames.shape[0] or frames.shape[1:] != self.frames.shape[1:]:
            raise InferenceError(
                f'encoder: got {list(frames.shape)}, allowed: up to {list(self.frames.shape)}'
            )
        self.frames[:num_views].copy_(frames, non_blocking=True)
        return num_views
