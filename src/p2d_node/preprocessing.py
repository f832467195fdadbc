"""Decoded frames come in; pixel_values go out, bit for bit as the model's processor makes them.

The references are Hugging Face's Pillow image processors: LLaVA-OneVision's in its several-images
mode, which pads frames to a square with the mean colour, and those that squash frames into it
(SigLIP's, InternVL's). Then all resize with Pillow, rescale and normalise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from p2d_node.errors import ConfigError
from p2d_node.records import DecodedFrame
from PIL import Image
import torch
from torch import Tensor

Colour = tuple[int, int, int]

FITS = {'LlavaOnevision': 'pad', 'Siglip': 'squash', 'GotOcr2': 'squash'}
"""First part of an image processor's class name to how a frame becomes square."""


@dataclass(frozen=True, kw_only=True)
class ImageProcessing:
    """What a checkpoint's image processor does to a picture.

    Attributes:
        size_px: Side of the square that the vision encoder sees.
        fit: How a frame becomes square: `pad` adds bars, `squash` changes its aspect ratio.
        resample: Pillow's number of the resampling filter.
        rescale_factor: Multiplied with 0..255.
        mean: Subtracted per channel (RGB) after rescaling.
        std: Divided by per channel (RGB) after that.
    """

    size_px: int
    fit: str
    resample: int
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_folder(cls, folder: Path) -> ImageProcessing:
        """Read the settings of the checkpoint in `folder`.

        Raises:
            ConfigError: No processor file, or one that this preprocessing does not cover.
        """
        settings = _read_settings(folder)
        size = settings.get('size', {})
        height, width = size.get('height'), size.get('width')
        if not isinstance(height, int) or height != width:
            raise ConfigError(f'{folder}: image size: got {size!r}, allowed: equal height, width')
        for switch in ('do_resize', 'do_rescale', 'do_normalize'):
            if settings.get(switch, True) is not True:
                raise ConfigError(f'{folder}: {switch}: got {settings[switch]!r}, allowed: true')
        return cls(
            size_px=height,
            fit=_read_fit(settings, folder),
            resample=int(settings.get('resample', Image.Resampling.BICUBIC)),
            rescale_factor=float(settings.get('rescale_factor', 1 / 255)),
            mean=tuple(settings['image_mean']),
            std=tuple(settings['image_std']),
        )

    @property
    def padding_colour(self) -> Colour:
        """RGB colour of the bars that make a frame square."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue


def _read_settings(folder: Path) -> dict[str, Any]:
    for name in ('preprocessor_config.json', 'processor_config.json'):
        path = folder / name
        if not path.is_file():
            continue
        try:
            settings: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
        except ValueError as err:
            raise ConfigError(f'{path}: not valid JSON: {err}; copy the checkpoint again') from err
        settings = settings.get('image_processor', settings)
        if 'image_mean' in settings and 'image_std' in settings:
            return settings
    raise ConfigError(
        f'{folder}: no image processor settings found, needed: preprocessor_config.json or '
        'processor_config.json with image_mean and image_std; copy them from the checkpoint'
    )


def _read_fit(settings: dict[str, Any], folder: Path) -> str:
    kind = settings.get('image_processor_type', 'LlavaOnevision')
    for name, fit in FITS.items():
        if str(kind).startswith(name):
            return fit
    allowed = ', '.join(f'{name}ImageProcessor' for name in FITS)
    raise ConfigError(f'{folder}: image_processor_type: got {kind!r}, allowed: {allowed}')


def _pad_and_resize(
    image: Image.Image, size_px: int, padding_colour: Colour, resample: int
) -> Image.Image:
    """Pad an image to a square, centred, and resize it as Pillow does."""
    side = max(image.size)
    canvas_size = (side, side)
    if image.width > image.height:
        # Pillow filters rows, rounds, then filters columns. A bar's rows are one colour and stay
        # so: filtering the rows before adding the bars gives the same bits, and no full-size copy.
        image = image.resize((size_px, image.height), resample)
        canvas_size = (size_px, side)
    canvas = Image.new('RGB', canvas_size, padding_colour)
    canvas.paste(image, ((canvas.width - image.width) // 2, (side - image.height) // 2))
    return canvas.resize((size_px, size_px), resample)


def resize_frame(frame: DecodedFrame, processing: ImageProcessing) -> npt.NDArray[np.uint8]:
    """Return `frame` as the uint8 RGB square [size_px, size_px, 3] that the encoder sees."""
    image, side = Image.fromarray(frame.pixels), processing.size_px
    # The channels of a BGR frame are swapped after the resize, where they are few.
    is_bgr = frame.channel_order == 'bgr'
    if processing.fit == 'squash':
        square = image.resize((side, side), processing.resample)
    else:
        colour = processing.padding_colour
        bars = colour[::-1] if is_bgr else colour
        square = _pad_and_resize(image, side, bars, processing.resample)
    return np.asarray(square)[..., ::-1] if is_bgr else np.asarray(square)


def normalize(
    squares: Sequence[npt.NDArray[np.uint8]], processing: ImageProcessing, device: torch.device
) -> Tensor:
    """Turn RGB squares into the encoder's input.

    Args:
        squares: Per view uint8 [size_px, size_px, 3].
        processing: The checkpoint's settings.
        device: Where the result lies; the frames travel there as bytes.

    Returns:
        pixel_values float32 [views, 3, size_px, size_px].
    """
    pixels = torch.from_numpy(np.stack(squares)).to(device).permute(0, 3, 1, 2)
    # float64 for the product, as numpy does it in the reference.
    scaled = pixels.to(torch.float64).mul_(processing.rescale_factor).to(torch.float32)
    mean = torch.tensor(processing.mean, device=device).view(3, 1, 1)
    std = torch.tensor(processing.std, device=device).view(3, 1, 1)
    return scaled.sub_(mean).div_(std).contiguous()
