"""Exports the vision encoder of a checkpoint to ONNX, with reference inputs and torch's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
import logging
import multiprocessing
from pathlib import Path
import warnings

import cv2
import numpy as np
from p2d_node.checkpoints.checkpoint import Checkpoint
from p2d_node.config import DEFAULT_MAX_IMAGE_SIDE_PX
from p2d_node.engine_build.frame_resize import FrameEncoder, FrameResize
from p2d_node.errors import ConfigError
from p2d_node.language_model.families.registry import load_vision_module
from p2d_node.preprocessing import ImageProcessing
from p2d_node.vision_encoder.base import EncoderInput, FRAMES
from p2d_node.vision_encoder.engine_buffers import INPUT_NAME, OUTPUT_NAME, PRECISIONS
from p2d_node.vision_encoder.manifest import ONNX_FILE, REFERENCE_FILE
from safetensors.torch import save_file
import torch
from torch import nn, Tensor

OPSET = 20
"""The newest opset in the documentation of TensorRT 10.x's parsers."""


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
        if self.num_views < 1:
            raise ConfigError(f'num_views: got {self.num_views}, allowed: 1 or more')
        sides = (self.input_spec.height, self.input_spec.width)
        allowed = range(1, DEFAULT_MAX_IMAGE_SIDE_PX + 1)
        if self.input_spec.kind == FRAMES and not all(side in allowed for side in sides):
            raise ConfigError(
                f'camera_size: got {sides[0]}x{sides[1]}, allowed: HEIGHTxWIDTH, each 1 to '
                f'{DEFAULT_MAX_IMAGE_SIDE_PX}'
            )

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input, pixels."""
        if self.input_spec.kind == FRAMES:
            return self.input_spec.height, self.input_spec.width
        return self.processing.height_px, self.processing.width_px


def export_onnx(plan: ExportPlan, folder: Path) -> tuple[int, int]:
    """Write model.onnx with its weights, and reference inputs with torch's tokens.

    The export runs in its own process, because the exporter never frees the weights and the next
    steps need the memory.

    Args:
        plan: What to export.
        folder: An existing folder for the files.

    Returns:
        Tokens per view and features per token.

    Raises:
        ConfigError: The checkpoint does not load, or there is not enough memory.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
        try:
            return process.submit(_export, plan, folder).result()
        except BrokenProcessPool as err:
            raise ConfigError(
                f'{plan.checkpoint.name}: the export was killed; it needs about three times the '
                'size of the vision weights in free memory'
            ) from err


def _export(plan: ExportPlan, folder: Path) -> tuple[int, int]:
    encoder: nn.Module = load_vision_module(plan.checkpoint)
    dtype = PRECISIONS[plan.precision]
    if plan.input_spec.kind == FRAMES:
        resize = FrameResize(plan.processing, *plan.input_size)
        encoder = FrameEncoder(resize, encoder, torch.float32)
    frames = make_reference_frames(plan)
    with torch.inference_mode():
        # View by view: the attention of all views at once needs six times the memory.
        tokens = torch.cat([encoder(frames[view : view + 1]) for view in range(plan.num_views)])
    save_file({INPUT_NAME: frames, OUTPUT_NAME: tokens}, folder / REFERENCE_FILE)
    encoder = _in_precision(encoder, dtype).eval()
    with _quiet_exporter(), torch.no_grad():
        torch.onnx.export(
            encoder,
            (frames,),
            folder / ONNX_FILE,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            opset_version=OPSET,
            dynamo=True,
            external_data=True,
            verbose=False,
        )
    return tokens.shape[1], tokens.shape[2]


class _CastingEncoder(nn.Module):
    """An encoder of pixel_values that computes in `dtype`."""

    def __init__(self, vision_module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.vision_module = vision_module
        self._dtype = dtype

    def forward(self, pixel_values: Tensor) -> Tensor:
        visual_tokens: Tensor = self.vision_module(pixel_values.to(self._dtype))
        return visual_tokens


def _in_precision(encoder: nn.Module, dtype: torch.dtype) -> nn.Module:
    if isinstance(encoder, FrameEncoder):
        # The resize stays in float32: 0..255 needs 8 bits before the point, and sums need more.
        return FrameEncoder(encoder.resize, encoder.vision_module.to(dtype), dtype)
    return _CastingEncoder(encoder.to(dtype), dtype)


def make_reference_frames(plan: ExportPlan, seed: int = 0) -> Tensor:
    """Draw pictures with structure at every scale; equal plans and seeds give equal pictures.

    Returns:
        uint8 BGR [views, height, width, 3] in 0..255, or float32 pixel_values [views, 3, height,
        width], as `plan.input_spec` says.
    """
    height, width = plan.input_size
    rng = np.random.default_rng(seed)
    levels = np.zeros((plan.num_views, height, width, 3), np.float32)
    for octave in range(1, 9):
        cells = rng.standard_normal((plan.num_views, 2**octave, 2**octave, 3)).astype(np.float32)
        for index, cell in enumerate(cells):
            layer = cv2.resize(cell, (width, height), interpolation=cv2.INTER_LINEAR)
            levels[index] += layer / octave
    levels -= levels.min()
    frames = torch.from_numpy((levels * (255 / levels.max())).astype(np.uint8))
    if plan.input_spec.kind == FRAMES:
        return frames
    mean, std = torch.tensor(plan.processing.mean), torch.tensor(plan.processing.std)
    return ((frames / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's messages about missing packages that it does not need."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)
