"""Decoded frames come in; pixel_values go out, bit for bit as the model's processor makes them.

The reference is Hugging Face's Pillow image processor of the model: fit to a square, resize with
Pillow, rescale, normalise. LLaVA-OneVision in its several-images mode pads to a square with the
mean colour first; InternVL without tiling squashes.
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

FITS = {'LlavaOnevisionImageProcessor': 'pad', 'GotOcr2ImageProcessor': 'squash'}
"""Start of a processor's class name to how it fits a frame; InternVL uses GotOcr2's."""


@dataclass(frozen=True, kw_only=True)
class ImageProcessing:
    """What a checkpoint's image processor does to a picture.

    Attributes:
        size_px: Side of the square that the vision encoder sees.
        fit: How a frame becomes a square: `pad` adds bars, `squash` stretches it.
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
            fit=_fit(folder, settings),
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


def _fit(folder: Path, settings: dict[str, Any]) -> str:
    kind = str(settings.get('image_processor_type', 'LlavaOnevisionImageProcessor'))
    for prefix, fit in FITS.items():
        if kind.startswith(prefix):
            return fit
    raise ConfigError(
        f'{folder}: image_processor_type: got {kind!r}, allowed: names that start with '
        f'{", ".join(FITS)}'
    )


def resize_to_square(
    pixels: npt.NDArray[np.uint8], size_px: int, padding_colour: Colour, resample: int
) -> npt.NDArray[np.uint8]:
    """Pad a frame to a square, centred, and resize it as Pillow does.

    Args:
        pixels: uint8 [height, width, 3] in any channel order.
        size_px: Side of the result.
        padding_colour: Colour of the bars, in the channel order of `pixels`.
        resample: Pillow's number of the filter.

    Returns:
        uint8 [size_px, size_px, 3].
    """
    image = Image.fromarray(pixels)
    side = max(image.size)
    canvas_size = (side, side)
    if image.width > image.height:
        # Pillow filters rows, rounds, then filters columns. A bar's rows are one colour and stay
        # so: filtering the rows before adding the bars gives the same bits, and no full-size copy.
        image = image.resize((size_px, image.height), resample)
        canvas_size = (size_px, side)
    canvas = Image.new('RGB', canvas_size, padding_colour)
    canvas.paste(image, ((canvas.width - image.width) // 2, (side - image.height) // 2))
    return np.asarray(canvas.resize((size_px, size_px), resample))


def resize_frame(frame: DecodedFrame, processing: ImageProcessing) -> npt.NDArray[np.uint8]:
    """Return `frame` as the uint8 RGB square [size_px, size_px, 3] that the encoder sees."""
    size_px, resample = processing.size_px, processing.resample
    is_rgb = frame.channel_order == 'rgb'
    if processing.fit == 'squash':
        square = np.asarray(Image.fromarray(frame.pixels).resize((size_px, size_px), resample))
    else:
        red, green, blue = processing.padding_colour
        colour = (red, green, blue) if is_rgb else (blue, green, red)
        square = resize_to_square(frame.pixels, size_px, colour, resample)
    return square if is_rgb else square[..., ::-1]


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
