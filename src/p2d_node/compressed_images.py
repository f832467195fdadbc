"""A JPEG or PNG file comes in; its pixels go out.

Every warning of a decoder is an error: libjpeg fills the missing part of a damaged file
with grey and only warns.
"""

from __future__ import annotations

from collections.abc import Iterator
import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from p2d_node.errors import ImageDecodeError, quote
from p2d_node.png_files import inflated_bytes, plain_png, PNG_HEADER, PNG_SIZE, PNG_START
import simplejpeg

Pixels = npt.NDArray[np.uint8]

BAYER_CODES = {
    'bayer_rggb8': cv2.COLOR_BayerBG2RGB,
    'bayer_bggr8': cv2.COLOR_BayerRG2RGB,
    'bayer_gbrg8': cv2.COLOR_BayerGR2RGB,
    'bayer_grbg8': cv2.COLOR_BayerGB2RGB,
}
"""ROS names the first two rows of the mosaic, OpenCV the second and third pixel of the second."""

AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
"""Without turning a picture as its EXIF data say: the camera calibration is that of the sensor."""

JPEG_START = b'\xff\xd8\xff'

GREY = 'Gray'

SEGMENT, SCAN = SCAN_START = b'\xff\xda'
BASELINE_FRAMES = (0xC0, 0xC1)
ARITHMETIC_FRAMES = (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
TABLES_AND_COMMENTS = (0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0))
"""Kinds of the segments of a JPEG before its scan."""

WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD8))
"""Kinds of segments that are their two bytes only."""

MAX_BYTES_PER_PIXEL, MAX_METADATA_BYTES = 4, 1 << 20
"""Of a JPEG, in which noise at the best quality takes three bytes; a larger file holds something
else. The pixels of a PNG may take as many for each of `max_pixels`: in 8-bit RGBA all, in 16-bit
RGBA half of them."""

MAX_SEGMENTS = 4096
"""Of a JPEG before its first scan, and bytes that fill the space between them; cameras write about
ten. They are walked through in Python."""

MAX_SCANS = 100
"""Of a JPEG; encoders write about ten. A scan of a few bytes costs a pass over all pixels."""


def decode_compressed(
    camera: str, text: str, content: Any, *, max_pixels: int
) -> tuple[Pixels, str]:
    """Decode a JPEG or PNG file.

    Args:
        camera: Name of the camera, for messages.
        text: The format, as image_transport writes it.
        content: The bytes of the file.
        max_pixels: Largest height x width; checked before memory is allocated.

    Returns:
        Pixels uint8 [height, width, 3] and their channel order, `rgb` or `bgr`.

    Raises:
        ImageDecodeError: It is no JPEG or PNG file, or is damaged, truncated or too large.
    """
    data = np.frombuffer(content, np.uint8)
    # image_transport names the raw encoding first: 'bayer_rggb8; jpeg compressed '.
    encoding, _, compression = text.partition(';')
    bayer_code = BAYER_CODES.get(encoding.strip().replace('16', '8'))
    pixels = _decode(camera, text, data, bayer_code is not None, max_pixels)
    if pixels.ndim == 2 and bayer_code is not None:
        return np.asarray(cv2.cvtColor(pixels, bayer_code), np.uint8), 'rgb'
    # Its subscriber takes the channels as they lie in the file for what this word says.
    return pixels, 'rgb' if 'compressed rgb' in compression else 'bgr'


def check_size(camera: str, height: int, width: int, max_pixels: int) -> None:
    """Raise `ImageDecodeError` for an image of a size, in pixels, that is not allowed."""
    # Models that pad a narrow image to a square make many pixels of few: up to four times as many.
    max_side_px = 2 * math.isqrt(max_pixels)
    sides_fit = 0 < height <= max_side_px and 0 < width <= max_side_px
    if not sides_fit or height * width > max_pixels:
        raise ImageDecodeError.of(
            camera,
            f'got {width}x{height} px, allowed: {max_pixels} pixels and 1 to {max_side_px} per '
            'side; for larger images set max_image_pixels',
        )


def _decode(camera: str, text: str, data: Pixels, keeps_grey: bool, max_pixels: int) -> Pixels:
    """Return uint8 [height, width, 3]; for a grey file with `keeps_grey` [height, width]."""
    start, size = data[:8].tobytes(), f'{data.size} bytes of format {quote(text)}'
    try:
        if start.startswith(JPEG_START):
            height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
            check_size(camera, height, width, max_pixels)
            _check_bytes(camera, data.size, height * width)
            _check_scans(data.data)
            return _decode_jpeg(data, keeps_grey=keeps_grey and colour == GREY)
        if start == PNG_START:
            width, height = np.frombuffer(data[PNG_SIZE].tobytes(), '>u4').tolist()
            check_size(camera, height, width, max_pixels)
            _check_inflated(camera, inflated_bytes(data[PNG_HEADER].tobytes()), max_pixels)
            return _decode_png(data, keeps_grey=keeps_grey)
    except ImageDecodeError:
        raise
    except MemoryError as err:
        raise ImageDecodeError.of(
            camera, f'got {size}, and no memory is free to decode them; end other programs'
        ) from err
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


def max_compressed_bytes(num_pixels: int) -> int:
    """Return the largest size of an image file, and of the pixels in a PNG, in bytes."""
    return MAX_BYTES_PER_PIXEL * num_pixels + MAX_METADATA_BYTES


def _check_bytes(camera: str, num_bytes: int, num_pixels: int) -> None:
    max_bytes = max_compressed_bytes(num_pixels)
    if num_bytes > max_bytes:
        raise ImageDecodeError.of(
            camera,
            f'got a JPEG of {num_bytes} bytes and {num_pixels} pixels, allowed: up to {max_bytes} '
            'bytes',
        )


def _check_inflated(camera: str, num_bytes: int, max_pixels: int) -> None:
    # One byte per row tells its filter; interlaced pictures have up to two rows per row.
    max_bytes = max_compressed_bytes(max_pixels)
    if num_bytes > max_bytes:
        raise ImageDecodeError.of(
            camera,
            f'got a PNG whose pixels take {num_bytes} bytes, allowed: up to {max_bytes}; send 8 '
            'bits per channel, or set max_image_pixels',
        )


def _check_scans(data: memoryview) -> None:
    if _has_one_scan(data):
        return
    num_scans = data.tobytes().count(SCAN_START)
    if num_scans > MAX_SCANS:
        raise ValueError(f'got {num_scans} scans, allowed: at most {MAX_SCANS}')


def _has_one_scan(data: memoryview) -> bool:
    """Tell whether a JPEG is plainly baseline with one scan of all colours, as cameras write it.

    This saves the search through the whole file. Anything unusual before the scan is a no.

    Raises:
        ValueError: It has arithmetic coding, which takes several times as long, and which no
            camera writes.
    """
    is_plain, num_colours = True, 0
    for kind, at in _segments(data):
        if kind == SCAN:
            return is_plain and data[at + 2] == num_colours
        if kind in ARITHMETIC_FRAMES:
            raise ValueError('it has arithmetic coding, allowed: Huffman coding')
        if kind in BASELINE_FRAMES:
            num_colours = data[at + 7]
        elif kind not in TABLES_AND_COMMENTS:
            is_plain = False
    raise ValueError('it has no scan')


def _segments(data: memoryview) -> Iterator[tuple[int, int]]:
    """Yield the kinds of the segments of a JPEG after its start, and where their lengths are."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        if data[at] != SEGMENT:
            return
        kind = data[at + 1]
        at += 1 if kind == SEGMENT else 2  # any number of these bytes may begin a segment
        if kind != SEGMENT and kind not in WITHOUT_LENGTH:
            yield kind, at
            num_bytes = int.from_bytes(data[at : at + 2], 'big')
            if num_bytes < 2:  # libjpeg takes it for 2
                raise ValueError(f'a segment has a length of {num_bytes}')
            at += num_bytes
    raise ValueError(f'got more than {MAX_SEGMENTS} segments before its first scan')


def _decode_jpeg(data: Pixels, *, keeps_grey: bool) -> Pixels:
    pixels: Any = simplejpeg.decode_jpeg(data, 'GRAY' if keeps_grey else 'BGR')
    return np.asarray(pixels[..., 0] if keeps_grey else pixels, np.uint8)


def _decode_png(data: Pixels, *, keeps_grey: bool) -> Pixels:
    # Checked before: libpng writes about damage to stderr, which nobody could throttle.
    plain = np.frombuffer(plain_png(data.data), np.uint8)
    grey_too = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(plain, grey_too if keeps_grey else AS_STORED)
    if pixels is None:
        raise ValueError('the compressed data is incomplete')
    return np.asarray(pixels, np.uint8)
