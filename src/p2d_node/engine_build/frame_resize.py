"""The model's image processor as a torch module: camera frames in, pixel_values out.

torch resizes bytes with two banded matrices, rows first, and rounds to bytes after each. The same
two products with the same weights run on any GPU and can be exported to ONNX; TensorRT's parser
refuses `Resize` with antialiasing. The result equals that of `preprocessing`, except that float32
sums round about one byte in a hundred thousand to its neighbour.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from p2d_node.preprocessing import ImageProcessing, TORCH_MODES
import torch
from torch import nn, Tensor
from torch.nn import functional

WEIGHT_BITS, MAX_PRECISION = 15, 22
"""torch keeps the filter weights of bytes as multiples of a power of 2: the largest one with which
the largest weight fits into 16 bits with a sign, of at most 22 bits (UpSampleKernel.cpp)."""

NUM_BANDS = 8
"""Matrix products per axis. Most weights are zero, so one large product would mostly multiply by
zero; more bands compute fewer zeros but need more kernel launches."""


def resize_weights(num_in: int, num_out: int, resample: int) -> npt.NDArray[np.float64]:
    """Return torch's filter weights for bytes, [num_out, num_in], for one axis."""
    identity = torch.eye(num_in, dtype=torch.float64)[None, None]
    weights = functional.interpolate(
        identity, (num_out, num_in), mode=TORCH_MODES[resample], antialias=True
    )[0, 0].numpy()
    # torch rounds halves away from zero.
    scale = 1 << _precision(float(weights.max()))
    rounded: npt.NDArray[np.float64] = np.trunc(weights * scale + np.copysign(0.5, weights))
    return rounded / scale


def _precision(largest: float) -> int:
    bits = (b for b in range(MAX_PRECISION) if int(0.5 + largest * (2 << b)) >= 1 << WEIGHT_BITS)
    return next(bits, MAX_PRECISION)


class AxisResize(nn.Module):
    """Resizes the last axis of [..., num_in] and rounds to whole levels in 0..255."""

    def __init__(self, weights: npt.NDArray[np.float64], bias: npt.NDArray[np.float64]) -> None:
        """Cut the weights into bands.

        Args:
            weights: [num_out, num_in].
            bias: [channels, 1, num_out], added before rounding: the share of the bars.
        """
        super().__init__()
        self._bands: list[tuple[int, int]] = []
        num_out = weights.shape[0]
        size = math.ceil(num_out / NUM_BANDS)
        for index, start in enumerate(range(0, num_out, size)):
            rows = weights[start : start + size]
            used = np.flatnonzero(rows.any(axis=0))
            low, high = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 1)
            self._bands.append((low, high))
            band = torch.from_numpy(rows[:, low:high].T.astype(np.float32).copy())
            self.register_buffer(f'band_{index}', band)
        # floor(x + 0.5) rounds to the nearest level, halves up, as torch does.
        self.register_buffer('bias', torch.from_numpy((bias + 0.5).astype(np.float32)))

    def forward(self, levels: Tensor) -> Tensor:
        """Map float32 [views, channels, lines, num_in] to [views, channels, lines, num_out]."""
        parts = [
            levels[..., low:high] @ self.get_buffer(f'band_{index}')
            for index, (low, high) in enumerate(self._bands)
        ]
        return torch.floor(torch.cat(parts, dim=-1) + self.get_buffer('bias')).clamp(0.0, 255.0)


class FrameResize(nn.Module):
    """Camera frames to pixel_values, as `preprocessing` computes them."""

    def __init__(self, processing: ImageProcessing, height: int, width: int) -> None:
        """Prepare the matrices for BGR frames of `height` x `width` pixels."""
        super().__init__()
        out_height, out_width = processing.height_px, processing.width_px
        square = max(height, width)
        pads = processing.fit == 'pad'
        padded = (square, square) if pads else (height, width)
        colour = np.array(processing.padding_colour[::-1], np.float64)
        self.columns = _axis(height, padded[0], out_height, processing.resample, colour)
        self.rows = _axis(width, padded[1], out_width, processing.resample, colour)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processing.mean, processing.std))
        self.register_buffer('scale', processing.rescale_factor / std)
        self.register_buffer('shift', mean / std)
        self.register_buffer('to_rgb', torch.tensor([2, 1, 0]))

    def forward(self, frames: Tensor) -> Tensor:
        """Map BGR frames, uint8 [views, height, width, 3], to float32 pixel_values."""
        levels: Tensor = frames.float().permute(0, 3, 1, 2)
        levels = self.rows(levels)
        levels = self.columns(levels.transpose(-1, -2)).transpose(-1, -2)
        rgb = levels.index_select(1, self.get_buffer('to_rgb'))
        pixel_values: Tensor = rgb * self.get_buffer('scale') - self.get_buffer('shift')
        return pixel_values


def _axis(
    num_pixels: int, num_in: int, num_out: int, resample: int, colour: npt.NDArray[np.float64]
) -> AxisResize:
    """Resize `num_pixels`, centred between bars of `colour` up to `num_in`, to `num_out`."""
    weights = resize_weights(num_in, num_out, resample)
    start = (num_in - num_pixels) // 2
    inside = slice(start, start + num_pixels)
    from_bars = np.delete(weights, inside, axis=1).sum(axis=1)
    return AxisResize(weights[:, inside], colour[:, None, None] * from_bars)


class FrameEncoder(nn.Module):
    """A vision encoder that includes the image processor: frames to visual_tokens."""

    def __init__(self, resize: FrameResize, vision_module: nn.Module, dtype: torch.dtype) -> None:
        """Combine both.

        Args:
            resize: The image processor; it computes in float32.
            vision_module: Maps pixel_values to visual_tokens.
            dtype: Number format of `vision_module`.
        """
        super().__init__()
        self.resize = resize
        self.vision_module = vision_module
        self._dtype = dtype

    def forward(self, frames: Tensor) -> Tensor:
        """Map uint8 BGR [views, height, width, 3] to [views, tokens, hidden] in `dtype`."""
        visual_tokens: Tensor = self.vision_module(self.resize(frames).to(self._dtype))
        return visual_tokens
