"""Exports the vision encoder of a checkpoint to ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
import logging
import multiprocessing
from pathlib import Path
import warnings

from p2d_node.engine_build.export_plan import ExportPlan
from p2d_node.engine_build.frame_resize import FrameEncoder
from p2d_node.engine_build.reference import draw_frames, load_encoder
from p2d_node.errors import ConfigError
from p2d_node.library_settings import safe_spawning
from p2d_node.vision_encoder.engine_buffers import INPUT_NAME, OUTPUT_NAME, PRECISIONS
from p2d_node.vision_encoder.manifest import ONNX_FILE
import torch
from torch import nn, Tensor

OPSET = 20
"""The newest opset in the documentation of TensorRT 10.x's parsers."""


def export_onnx(plan: ExportPlan, folder: Path) -> tuple[int, int]:
    """Write model.onnx and its weights, in a process of its own.

    The exporter never frees the weights, and the next steps need the memory.

    Args:
        plan: What to export.
        folder: An existing folder for the files.

    Returns:
        Tokens per view and features per token.

    Raises:
        ConfigError: The checkpoint does not load, there is not enough memory, or a file cannot be
            written.
    """
    with (
        safe_spawning(),
        ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process,
    ):
        try:
            return process.submit(write_onnx, plan, folder).result()
        except OSError as err:
            raise ConfigError(
                f'engine_dir: {folder.parent} cannot be written: {err.strerror or err}; check its '
                'free space'
            ) from err
        except BrokenProcessPool as err:
            raise ConfigError(
                f'{plan.checkpoint.name}: the export was killed; it needs about three times the '
                'size of the vision weights in free memory'
            ) from err


def write_onnx(plan: ExportPlan, folder: Path) -> tuple[int, int]:
    """Do the work of `export_onnx` in this process."""
    encoder = load_encoder(plan)
    frames = draw_frames(plan, seed=0)
    with torch.inference_mode():
        _, num_tokens, hidden_size = encoder(frames[:1]).shape
    encoder = _in_precision(encoder, PRECISIONS[plan.precision]).eval()
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
    return num_tokens, hidden_size


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
