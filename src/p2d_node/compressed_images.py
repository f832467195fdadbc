"""A JPEG or PNG file comes in; its pixels go out.

Every warning of a decoder is an error: libjpeg fills the missing part of a damaged file
with grey and only warns.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from p2d_node.errors import ImageDecodeError, quote
from PIL import Image, UnidentifiedImageError
import simplejpeg

Pixels = npt.NDArray[np.uint8]

BAYER_CODES = {
    'bayer_rggb8': cv2.COLOR_BayerBG2RGB,
    'bayer_bggr8': cv2.COLOR_BayerRG2RGB,
    'bayer_gbrg8': cv2.COLOR_BayerGR2RGB,
    'bayer_grbg8': cv2.COLOR_BayerGB2RGB,
}
"""ROS names the first two rows of the mosaic, OpenCV the second and third pixel of the second."""

JPEG_START = b'\xff\xd8\xff'
PNG_START = b'\x89PNG\r\n\x1a\n'
PNG_SIZE = slice(16, 24)
"""Width and height, big-endian, in the header chunk, which comes first."""

GREY = 'Gray'


def decode_compressed(
    camera: str, text: str, content: Any, *, max_side_px: int
) -> tuple[Pixels, str]:
    """Decode a JPEG or PNG file.

    Args:
        camera: Name of the camera, for messages.
        text: The format, as image_transport writes it.
        content: The bytes of the file.
        max_side_px: Largest height and width; checked before memory is allocated.

    Returns:
        Pixels uint8 [height, width, 3] and their channel order, `rgb` or `bgr`.

    Raises:
        ImageDecodeError: It is no JPEG or PNG file, or is damaged, truncated or too large.
    """
    data = np.frombuffer(content, np.uint8)
    # image_transport names the raw encoding first: 'bayer_rggb8; jpeg compressed '.
    encoding, _, compression = text.partition(';')
    bayer_code = BAYER_CODES.get(encoding.strip().replace('16', '8'))
    pixels = _decode(camera, text, data, bayer_code is not None, max_side_px)
    if pixels.ndim == 2 and bayer_code is not None:
        return np.asarray(cv2.cvtColor(pixels, bayer_code), np.uint8), 'rgb'
    # Its subscriber takes the channels as they lie in the file for what this word says.
    return pixels, 'rgb' if 'compressed rgb' in compression else 'bgr'


def check_size(camera: str, height: int, width: int, max_side_px: int) -> None:
    """Raise `ImageDecodeError` for an image of a size, in pixels, that is not allowed."""
    if not (0 < height <= max_side_px and 0 < width <= max_side_px):
        raise ImageDecodeError.of(
            camera,
            f'got {width}x{height} px, allowed: 1 to {max_side_px} per side; for larger images '
            'set max_image_side_px',
        )


def _decode(camera: str, text: str, data: Pixels, keeps_grey: bool, max_side_px: int) -> Pixels:
    """Return uint8 [height, width, 3]; for a grey file with `keeps_grey` [height, width]."""
    start, size = data[:8].tobytes(), f'{data.size} bytes of format {quote(text)}'
    try:
        if start.startswith(JPEG_START):
            height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
            check_size(camera, height, width, max_side_px)
            return _decode_jpeg(data, keeps_grey=keeps_grey and colour == GREY)
        if start == PNG_START:
            width, height = np.frombuffer(data[PNG_SIZE].tobytes(), '>u4').tolist()
            check_size(camera, height, width, max_side_px)
            return _decode_png(data, keeps_grey=keeps_grey)
    except ImageDecodeError:
        raise
    except Exception as err:  # decoders raise many classes
        reason = str(err).strip().rstrip('.') or type(err).__name__
        raise ImageDecodeError.of(
            camera,
            f'got {size} that are damaged or truncated: {reason}; check the network and the '
            'publisher',
        ) from err
    raise ImageDecodeError.of(
        camera,
        f'got {size} that start with {start.hex() or "nothing"}, allowed: JPEG or PNG',
    )


def _decode_jpeg(data: Pixels, *, keeps_grey: bool) -> Pixels:
    pixels: Any = simplejpeg.decode_jpeg(data, 'GRAY' if keeps_grey else 'BGR')
    return np.asarray(pixels[..., 0] if keeps_grey else pixels, np.uint8)


def _decode_png(data: Pixels, *, keeps_grey: bool) -> Pixels:
    # Finds most damage without libpng's own message on stderr, which nobody could throttle.
    try:
        Image.open(BytesIO(data.data)).verify()
    except UnidentifiedImageError as err:
        raise ValueError('its header is damaged') from err
    colour = cv2.IMREAD_ANYCOLOR if keeps_grey else cv2.IMREAD_COLOR
    pixels = cv2.imdecode(data, colour | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError('the compressed data is incomplete')
    return np.asarray(pixels, np.uint8)
