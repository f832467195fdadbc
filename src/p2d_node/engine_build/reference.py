"""Pictures, and torch's tokens of them: what an engine is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from p2d_node.engine_build.export_plan import ExportPlan
from p2d_node.engine_build.frame_resize import FrameEncoder, FrameResize
from p2d_node.language_model.families.registry import load_vision_module
from p2d_node.vision_encoder.base import FRAMES
import torch
from torch import nn, Tensor

NUM_OCTAVES = 8


@dataclass(frozen=True, slots=True)
class Reference:
    """Pictures and torch's tokens.

    Attributes:
        frames: The input of the engine, from `draw_frames`.
        visual_tokens: float32 [views, tokens, hidden].
    """

    frames: Tensor
    visual_tokens: Tensor


@torch.inference_mode()
def compute_reference(plan: ExportPlan, *, seed: int) -> Reference:
    """Draw pictures and compute their tokens with torch in float32 on the CPU.

    Raises:
        ConfigError: The checkpoint does not load.
    """
    encoder = load_encoder(plan)
    frames = draw_frames(plan, seed=seed)
    # View by view: the attention of all views at once needs six times the memory.
    tokens = [encoder(frames[view : view + 1]) for view in range(plan.num_views)]
    return Reference(frames, torch.cat(tokens))


def load_encoder(plan: ExportPlan) -> nn.Module:
    """Load the encoder that is exported, in float32 on the CPU."""
    view_size = (plan.processing.height_px, plan.processing.width_px)
    vision_module = load_vision_module(plan.checkpoint, view_size)
    if plan.input_spec.kind != FRAMES:
        return vision_module
    return FrameEncoder(
        FrameResize(plan.processing, *plan.input_size), vision_module, torch.float32
    )


def draw_frames(plan: ExportPlan, *, seed: int) -> Tensor:
    """Draw smooth and rough pictures, the first with structure at every scale.

    Equal plans and seeds give equal pictures.

    Returns:
        uint8 BGR [views, height, width, 3] in 0..255, or float32 pixel_values [views, 3, height,
        width], as `plan.input_spec` says.
    """
    height, width = plan.input_size
    rng = np.random.default_rng(seed)
    levels = np.zeros((plan.num_views, height, width, 3), np.float32)
    finest = rng.integers(1, NUM_OCTAVES + 1, plan.num_views)
    finest[0] = NUM_OCTAVES
    for octave in range(1, NUM_OCTAVES + 1):
        cells = rng.standard_normal((plan.num_views, 2**octave, 2**octave, 3)).astype(np.float32)
        for index in np.flatnonzero(finest >= octave):
            layer = cv2.resize(cells[index], (width, height), interpolation=cv2.INTER_LINEAR)
            levels[index] += layer / octave
    levels -= levels.min()
    frames = torch.from_numpy((levels * (255 / levels.max())).astype(np.uint8))
    if plan.input_spec.kind == FRAMES:
        return frames
    mean, std = torch.tensor(plan.processing.mean), torch.tensor(plan.processing.std)
    pixels = (frames * plan.processing.rescale_factor - mean) / std
    return pixels.permute(0, 3, 1, 2).contiguous()
