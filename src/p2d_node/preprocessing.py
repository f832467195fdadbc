"""Decoded frames come in; pixel_values go out, those of the model's processor.

The references are the image processors of transformers. LLaVA-OneVision's, in its mode for
several images, pads a frame to a square with the mean colour. SigLIP's and InternVL's stretch it
to a square. Qwen-VL's stretches it to a size that depends on the frame. All of them resize,
rescale and normalise.

Frames are resized by the kernel of transformers' default processors: torch's antialiased one for
bytes. Those with Pillow differ from it in a few bytes of a thousand: by one level of 255 where
frames shrink, by at most two where they grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import lru_cache
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from p2d_node.durable_files import read_json_object
from p2d_node.errors import ConfigError, ImageDecodeError, quote
from p2d_node.records import DecodedFrame
from PIL.Image import Resampling
import torch
from torch import Tensor
from torch.nn import functional

Pixels = npt.NDArray[np.uint8]

QWEN_PIXELS = {'shortest_edge': 3136, 'longest_edge': 1003520}
"""The range of Qwen2VLImageProcessor in transformers for settings without a size."""

MAX_VIEW_PIXELS = 1 << 21
"""Of a view that a checkpoint asks for; published ones ask for up to 1344 x 1344. Those that take
any size get no more pixels than a frame has, unless their smallest size is larger."""

MAX_PATCH_PX, MAX_MERGED = 64, 8
"""Side of a patch, and patches per side of a token. Published models have 14 or 16, and 2."""

MAX_COLOUR = 16.0
"""Of a mean or deviation, in units of the range of a colour; published ones are 0.2 to 0.7."""

MIN_STD = 1e-3
"""Colours are divided by the deviation."""

FIT_OF_PROCESSOR = {
    'LlavaOnevision': 'pad',
    'Siglip': 'squash',
    'GotOcr2': 'squash',
    'Qwen2VL': 'squash',
}
"""Start of an image processor's class name to `ImageProcessing.fit`."""

TORCH_MODES = {int(Resampling.BILINEAR): 'bilinear', int(Resampling.BICUBIC): 'bicubic'}
"""Pillow's number of a resampling filter, which settings use, to torch's name. Published models
use bicubic."""

NUM_LEVELS = 256

FRAME_SIZE_PX = (900, 1600)
"""Height and width of a nuScenes frame. Where the picture size depends on the frame size, this one
is used for all frames."""

ROWS_AT_ONCE = 64
"""Of a tall frame that is padded: a frame of 1 x 8192 pixels padded to a square takes 270 MB."""


@dataclass(frozen=True, kw_only=True)
class ImageProcessing:
    """Settings of a checkpoint's image processor.

    Attributes:
        height_px: Height of the picture that the vision encoder sees.
        width_px: Its width.
        fit: How a frame is brought to this shape. `pad` keeps its aspect ratio and adds bars;
            `squash` stretches it.
        resample: Pillow's number of the resampling filter, one of `TORCH_MODES`.
        rescale_factor: Factor of the pixel values 0..255.
        mean: Subtracted per channel (RGB) after rescaling.
        std: Divisor per channel (RGB) after that.
    """

    height_px: int
    width_px: int
    fit: str
    resample: int
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_folder(cls, folder: Path, *, max_pixels: int = 0) -> ImageProcessing:
        """Read the settings of the checkpoint in `folder`.

        Args:
            folder: The checkpoint.
            max_pixels: Maximum number of pixels of a view, for models that accept any size;
                0: the checkpoint's own maximum.

        Raises:
            ConfigError: The settings are missing or not supported.
        """
        settings = _read_settings(folder)
        if str(settings.get('image_processor_type')).startswith('Qwen2VL'):
            height, width = _variable_size(settings, folder, max_pixels)
        else:
            height, width = _fixed_size(settings, folder)
        for switch in ('do_resize', 'do_rescale', 'do_normalize'):
            if settings.get(switch, True) is not True:
                raise ConfigError(f'{folder}: {switch}: got {settings[switch]!r}, allowed: true')
        return cls(
            height_px=height,
            width_px=width,
            fit=_read_fit(settings, folder),
            resample=_read_resample(settings, folder),
            rescale_factor=_read_positive(settings, 'rescale_factor', folder, 1 / 255),
            mean=_read_colour(settings, 'image_mean', folder, -MAX_COLOUR),
            std=_read_colour(settings, 'image_std', folder, MIN_STD),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON data; engine manifests store them."""
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return settings

    @property
    def padding_colour(self) -> tuple[int, int, int]:
        """RGB colour of the bars, 0..255."""
        red, green, blue = (min(max(0, int(value * 255)), 255) for value in self.mean)
        return red, green, blue


def _read_settings(folder: Path) -> dict[str, Any]:
    for name in ('preprocessor_config.json', 'processor_config.json'):
        path = folder / name
        if not path.is_file():
            continue
        settings = read_json_object(path, next_step='copy the checkpoint again')
        settings = dict(settings.get('image_processor', settings))
        if 'image_mean' in settings and 'image_std' in settings:
            return settings
    raise ConfigError(
        f'{folder}: no image processor settings found, needed: preprocessor_config.json or '
        'processor_config.json with image_mean and image_std; copy them from the checkpoint'
    )


def _fixed_size(settings: dict[str, Any], folder: Path) -> tuple[int, int]:
    size = settings.get('size')
    sides = size if isinstance(size, dict) else {}
    height, width = sides.get('height'), sides.get('width')
    if type(height) is not int or height != width or height < 1:
        raise ConfigError(f'{folder}: image size: got {size!r}, allowed: equal height, width')
    if height**2 > MAX_VIEW_PIXELS:
        raise ConfigError(
            f'{folder}: image size: got {height} x {width} pixels, allowed: up to '
            f'{MAX_VIEW_PIXELS} in all; copy the checkpoint again'
        )
    return height, width


def _variable_size(settings: dict[str, Any], folder: Path, max_pixels: int) -> tuple[int, int]:
    """Return the height and width that Qwen-VL's processor resizes `FRAME_SIZE_PX` to.

    Both are multiples of the side of a token. The aspect ratio is about that of the frame, and the
    number of pixels is within the range of the settings.
    """
    smallest, largest = _pixel_range(settings, folder)
    if not 0 < smallest <= largest or smallest > MAX_VIEW_PIXELS:
        raise ConfigError(
            f'{folder}: image size: got {smallest} to {largest} pixels, allowed: a range whose '
            f'smallest is 1 to {MAX_VIEW_PIXELS}; copy the checkpoint again'
        )
    largest = min(largest, max_pixels or largest)
    token_px = _read_count(settings, 'patch_size', folder, 14, MAX_PATCH_PX)
    token_px *= _read_count(settings, 'merge_size', folder, 2, MAX_MERGED)
    height, width = (round(side / token_px) * token_px for side in FRAME_SIZE_PX)
    area = math.prod(FRAME_SIZE_PX)
    if height * width > largest:
        shrink = math.sqrt(area / largest)
        sides = (math.floor(side / shrink / token_px) * token_px for side in FRAME_SIZE_PX)
        height, width = (max(token_px, side) for side in sides)
    elif height * width < smallest:
        grow = math.sqrt(smallest / area)
        height, width = (math.ceil(side * grow / token_px) * token_px for side in FRAME_SIZE_PX)
    return height, width


def _pixel_range(settings: dict[str, Any], folder: Path) -> tuple[int, int]:
    """Return the smallest and the largest number of pixels, each with transformers' default."""
    size = settings.get('size') or QWEN_PIXELS
    if not isinstance(size, dict):
        raise ConfigError(f'{folder}: image size: got {quote(size)}, allowed: an object')
    smallest = settings.get('min_pixels') or size.get('shortest_edge')
    largest = settings.get('max_pixels') or size.get('longest_edge')
    if not isinstance(smallest, int) or not isinstance(largest, int):
        raise ConfigError(
            f'{folder}: image size: got {size!r}, allowed: shortest_edge and longest_edge, or '
            'min_pixels and max_pixels, each a number of pixels'
        )
    return smallest, largest


def _read_resample(settings: dict[str, Any], folder: Path) -> int:
    value = settings.get('resample', Resampling.BICUBIC)
    if not isinstance(value, int) or value not in TORCH_MODES:
        allowed = ', '.join(f'{number} ({mode})' for number, mode in TORCH_MODES.items())
        raise ConfigError(f'{folder}: resample: got {quote(value)}, allowed: {allowed}')
    return int(value)


def _read_count(
    settings: dict[str, Any], name: str, folder: Path, default: int, largest: int
) -> int:
    value = settings.get(name, default)
    if type(value) is not int or not 1 <= value <= largest:
        raise ConfigError(f'{folder}: {name}: got {quote(value)}, allowed: 1 to {largest}')
    return value


def _read_positive(settings: dict[str, Any], name: str, folder: Path, default: float) -> float:
    value = settings.get(name, default)
    if not _is_number(value) or value <= 0.0:
        raise ConfigError(f'{folder}: {name}: got {quote(value)}, allowed: a number above 0')
    return float(value)


def _read_colour(
    settings: dict[str, Any], name: str, folder: Path, above: float
) -> tuple[float, float, float]:
    values = settings[name]
    if isinstance(values, list) and len(values) == 3 and all(map(_is_number, values)):
        red, green, blue = values
        if min(values) > above and max(values) <= MAX_COLOUR:
            return float(red), float(green), float(blue)
    raise ConfigError(
        f'{folder}: {name}: got {quote(values)}, allowed: three numbers above {above:g} and up to '
        f"{MAX_COLOUR:g}; copy the checkpoint's preprocessor_config.json again"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _read_fit(settings: dict[str, Any], folder: Path) -> str:
    processor = settings.get('image_processor_type', 'LlavaOnevision')
    for name, fit in FIT_OF_PROCESSOR.items():
        if str(processor).startswith(name):
            return fit
    allowed = ', '.join(f'{name}ImageProcessor' for name in FIT_OF_PROCESSOR)
    raise ConfigError(f'{folder}: image_processor_type: got {processor!r}, allowed: {allowed}')


def resize_frame(frame: DecodedFrame, processing: ImageProcessing) -> Pixels:
    """Resize `frame` to the encoder's RGB picture, uint8 [height_px, width_px, 3]."""
    # Channels of a BGR frame are swapped after the resize, when there are fewer pixels.
    is_bgr = frame.channel_order == 'bgr'
    if processing.fit == 'squash':
        size = (processing.height_px, processing.width_px)
        picture = _resize(frame.pixels, size, processing.resample)
    else:
        colour = processing.padding_colour
        bars = colour[::-1] if is_bgr else colour
        picture = _pad_and_resize(frame.pixels, processing.height_px, bars, processing.resample)
    return picture[..., ::-1] if is_bgr else picture


def _resize(pixels: Pixels, size: tuple[int, int], resample: int) -> Pixels:
    """Resize uint8 [height, width, 3] to `size`, height and width in pixels."""
    # torch takes no read-only memory; frames of ROS messages are writable, and are not copied.
    channels_last = torch.from_numpy(np.require(pixels, requirements='W'))[None]
    picture = functional.interpolate(
        channels_last.permute(0, 3, 1, 2), size, mode=TORCH_MODES[resample], antialias=True
    )
    resized: Pixels = picture[0].permute(1, 2, 0).numpy()
    return resized


def _pad_and_resize(
    pixels: Pixels, size_px: int, padding_colour: tuple[int, int, int], resample: int
) -> Pixels:
    """Pad pixels, uint8 [height, width, 3], to a centred square; resize it to `size_px`.

    torch filters rows, rounds, then filters columns. Rows of a bar have one colour, which
    filtering does not change. So filtering the rows before adding the bars gives the same bits,
    and needs no picture of full size.
    """
    height, width, _ = pixels.shape
    side = max(height, width)
    canvas = _fill(side, size_px, padding_colour)
    if width == side:
        top = (side - height) // 2
        canvas[top : top + height] = _resize(pixels, (height, size_px), resample)
    else:
        left = (side - width) // 2
        for top in range(0, side, ROWS_AT_ONCE):
            strip = pixels[top : top + ROWS_AT_ONCE]
            padded = _fill(len(strip), side, padding_colour)
            padded[:, left : left + width] = strip
            canvas[top : top + len(strip)] = _resize(padded, (len(strip), size_px), resample)
    return _resize(canvas, (size_px, size_px), resample)


def _fill(height: int, width: int, colour: tuple[int, int, int]) -> Pixels:
    return np.full((height, width, 3), colour, np.uint8)


class FrameStack:
    """A reused host buffer with the frames of one sweep, for engines that resize.

    Use it from one thread at a time.
    """

    def __init__(self, num_views: int, height: int, width: int, *, pinned: bool) -> None:
        """Allocate the buffer; from pinned memory a copy to a GPU is asynchronous."""
        shape = (num_views, height, width, 3)
        self._buffer = torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned)
        self._views: list[Pixels] = list(self._buffer.numpy())

    def fill(self, frames: Sequence[DecodedFrame], pool: Executor) -> Tensor:
        """Copy `frames` as BGR into the buffer, one thread of `pool` per view.

        Returns:
            uint8 [views, height, width, 3] in BGR on the host; the next call overwrites it.

        Raises:
            ImageDecodeError: A frame does not have the size that the engine was built for.
        """
        height, width = self._views[0].shape[:2]
        for frame in frames:
            if frame.pixels.shape != (height, width, 3):
                got_height, got_width = frame.pixels.shape[:2]
                raise ImageDecodeError.of(
                    frame.camera,
                    f'got a frame of {got_height}x{got_width} px, the engine was built for '
                    f'{height}x{width}; build one with p2d build-engine --camera-size '
                    f'{got_height}x{got_width}, or --input pixel_values for any size',
                )
        list(pool.map(_copy_as_bgr, frames, self._views))
        return self._buffer[: len(frames)]


def _copy_as_bgr(frame: DecodedFrame, view: Pixels) -> None:
    np.copyto(view, frame.pixels if frame.channel_order == 'bgr' else frame.pixels[..., ::-1])


def normalize(
    pictures: Sequence[Pixels], processing: ImageProcessing, device: torch.device
) -> Tensor:
    """Rescale and normalise RGB pictures.

    Args:
        pictures: Per view uint8 [height_px, width_px, 3].
        processing: The checkpoint's settings.
        device: Device of the result.

    Returns:
        pixel_values float32 [views, 3, height_px, width_px].
    """
    table = _value_of_levels(processing)
    height, width, _ = pictures[0].shape
    pixel_values = np.empty((len(pictures), 3, height, width), np.float32)
    for picture, planes in zip(pictures, pixel_values, strict=True):
        for channel, values in enumerate(table):
            plane = np.ascontiguousarray(picture[..., channel])
            planes[channel] = cv2.LUT(plane, values)
    return torch.from_numpy(pixel_values).to(device)


@lru_cache(maxsize=4)
def _value_of_levels(processing: ImageProcessing) -> npt.NDArray[np.float32]:
    """Return the normalised value of each level of each channel, float32 [3, 256]."""
    levels = np.arange(NUM_LEVELS, dtype=np.float64)
    # float64 for the product, as in the reference, which uses numpy.
    scaled = (levels * processing.rescale_factor).astype(np.float32)
    mean, std = (np.array(v, np.float32)[:, None] for v in (processing.mean, processing.std))
    values: npt.NDArray[np.float32] = (scaled - mean) / std
    return values
