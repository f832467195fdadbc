"""What is exported: a model, its pictures and its precision."""

from __future__ import annotations

from dataclasses import dataclass

from p2d_node.checkpoints.checkpoint import Checkpoint
from p2d_node.config import DEFAULT_MAX_IMAGE_PIXELS
from p2d_node.errors import ConfigError
from p2d_node.preprocessing import ImageProcessing
from p2d_node.vision_encoder.base import EncoderInput, FRAMES
from p2d_node.vision_encoder.engine_buffers import PRECISIONS

MAX_VIEWS = 64
"""Largest number of cameras of an engine."""


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """What is exported.

    Attributes:
        checkpoint: The model.
        processing: Its image processor.
        input_spec: The input of the engine.
        precision: Number format of the encoder: fp32, fp16 or bf16.
        num_views: Number of cameras, the static batch size.
    """

    checkpoint: Checkpoint
    processing: ImageProcessing
    input_spec: EncoderInput
    precision: str
    num_views: int

    def __post_init__(self) -> None:
        """Check the values."""
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f'precision: got {self.precision!r}, allowed: {", ".join(PRECISIONS)}'
            )
        if not 1 <= self.num_views <= MAX_VIEWS:
            raise ConfigError(f'num_views: got {self.num_views}, allowed: 1 to {MAX_VIEWS}')
        height, width = self.input_spec.height, self.input_spec.width
        fits = min(height, width) >= 1 and height * width <= DEFAULT_MAX_IMAGE_PIXELS
        if self.input_spec.kind == FRAMES and not fits:
            raise ConfigError(
                f'camera_size: got {height}x{width}, allowed: HEIGHTxWIDTH, 1 or more each, at '
                f'most {DEFAULT_MAX_IMAGE_PIXELS} pixels'
            )

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input, pixels."""
        if self.input_spec.kind == FRAMES:
            return self.input_spec.height, self.input_spec.width
        return self.processing.height_px, self.processing.width_px
