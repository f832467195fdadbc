"""A camera frame comes in; its pixels go out.

Raw frames in 8-bit RGB or BGR are used in place, without a copy. OpenCV converts the other common
encodings; cv_bridge converts rare ones, as far as the installed one can. JPEG and PNG files are
decoded in `compressed_images`.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from p2d_node.compressed_images import BAYER_CODES, check_size, decode_compressed
from p2d_node.config import DEFAULT_MAX_IMAGE_PIXELS
from p2d_node.errors import ImageDecodeError, quote
from p2d_node.records import CameraFrame, CompressedImageLike, DecodedFrame, RawImageLike

IN_PLACE_ENCODINGS = {'rgb8': 'rgb', 'bgr8': 'bgr', '8UC3': 'bgr'}
"""Encodings that are used without a copy, and their channel order."""

PACKED_YUV_CODES = {
    'yuv422': cv2.COLOR_YUV2RGB_UYVY,
    'uyvy': cv2.COLOR_YUV2RGB_UYVY,
    'yuv422_yuy2': cv2.COLOR_YUV2RGB_YUY2,
    'yuyv': cv2.COLOR_YUV2RGB_YUY2,
}
"""Two-byte encodings of many USB cameras; two neighbouring pixels share their colour."""

CONVERSION_CODES = {
    **PACKED_YUV_CODES,
    **BAYER_CODES,
    'rgba8': cv2.COLOR_RGBA2RGB,
    'bgra8': cv2.COLOR_BGRA2RGB,
    'mono8': cv2.COLOR_GRAY2RGB,
    'mono16': cv2.COLOR_GRAY2RGB,
}

BYTES_PER_PIXEL = {
    **dict.fromkeys(IN_PLACE_ENCODINGS, 3),
    **dict.fromkeys(PACKED_YUV_CODES, 2),
    'rgba8': 4,
    'bgra8': 4,
    'mono8': 1,
    'mono16': 2,
    **dict.fromkeys(BAYER_CODES, 1),
}
"""All raw encodings that need no cv_bridge."""


def decode_frame(
    frame: CameraFrame, *, max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
) -> DecodedFrame:
    """Decode the payload of `frame`, a ROS image message or a record with the same fields.

    Args:
        frame: The frame.
        max_pixels: Largest height x width; checked before memory is allocated.

    Returns:
        Pixels uint8 [height, width, 3]. For raw RGB and BGR they are a view of the message's
        bytes, also if its rows are padded, so the message must outlive them.

    Raises:
        ImageDecodeError: The frame is broken, truncated, too large or in an unsupported encoding.
    """
    payload = frame.payload
    if isinstance(payload, RawImageLike):
        pixels, channel_order = _decode_raw(frame.camera, payload, max_pixels)
    elif isinstance(payload, CompressedImageLike):
        pixels, channel_order = decode_compressed(
            frame.camera, payload.format, payload.data, max_pixels=max_pixels
        )
    else:
        raise ImageDecodeError.of(
            frame.camera,
            f'got a payload of type {type(payload).__name__}, '
            'allowed: sensor_msgs Image or CompressedImage',
        )
    return DecodedFrame(frame.camera, frame.stamp_ns, pixels, channel_order)


def _decode_raw(
    camera: str, image: RawImageLike, max_pixels: int
) -> tuple[npt.NDArray[np.uint8], str]:
    check_size(camera, image.height, image.width, max_pixels)
    data = _check_raw(camera, image)
    height, width, encoding = image.height, image.width, image.encoding
    if encoding not in BYTES_PER_PIXEL:
        return _convert_with_cv_bridge(camera, image), 'rgb'
    if encoding in IN_PLACE_ENCODINGS:
        pixels = np.ndarray((height, width, 3), np.uint8, data, strides=(image.step, 3, 1))
        return pixels, IN_PLACE_ENCODINGS[encoding]
    if encoding in PACKED_YUV_CODES and width % 2:
        raise ImageDecodeError.of(
            camera, f'got a width of {width} px, allowed: an even one, {encoding}'
        )
    depth = BYTES_PER_PIXEL[encoding]
    pixels = np.ndarray((height, width, depth), np.uint8, data, strides=(image.step, depth, 1))
    if encoding == 'mono16':
        pixels = _to_8_bits(pixels, is_big_endian=bool(image.is_bigendian))
    return np.asarray(cv2.cvtColor(pixels, CONVERSION_CODES[encoding]), np.uint8), 'rgb'


def _to_8_bits(pixels: npt.NDArray[np.uint8], *, is_big_endian: bool) -> npt.NDArray[np.uint8]:
    """Scale 16-bit pixels, given as uint8 [height, width, 2], to 8 bits, as cv_bridge does."""
    order = '>u2' if is_big_endian else '<u2'
    words = np.ascontiguousarray(pixels).view(order).astype(np.uint16)
    return np.asarray(cv2.convertScaleAbs(words, alpha=255 / 65535), np.uint8)


def _check_raw(camera: str, image: RawImageLike) -> npt.NDArray[np.uint8]:
    """Return the message's bytes as uint8 [bytes], without a copy, after checking its fields."""
    width_bytes = image.width * BYTES_PER_PIXEL.get(image.encoding, 1)
    if image.step < width_bytes:
        raise ImageDecodeError.of(
            camera,
            f'got a row step of {image.step} bytes, allowed: at least {width_bytes} for '
            f'{image.width} px of {quote(image.encoding)}',
        )
    data = np.frombuffer(image.data, np.uint8)
    if data.size < image.step * image.height:
        raise ImageDecodeError.of(
            camera,
            f'got {data.size} bytes, allowed: at least {image.step * image.height} for '
            f'{image.height} rows of {image.step} bytes',
        )
    return data


def _convert_with_cv_bridge(camera: str, image: RawImageLike) -> npt.NDArray[np.uint8]:
    try:
        from cv_bridge import CvBridge

        pixels: Any = CvBridge().imgmsg_to_cv2(image, 'rgb8')
        if pixels.shape != (image.height, image.width, 3) or pixels.dtype != np.uint8:
            raise ValueError(f'it gave {pixels.dtype} {list(pixels.shape)}')
    except Exception as err:  # not installed, or it passes on the errors of other libraries
        raise ImageDecodeError.of(
            camera,
            f'got encoding {quote(image.encoding)}, allowed: {", ".join(BYTES_PER_PIXEL)}, or '
            'what the installed cv_bridge converts to rgb8; set the camera driver to one of these',
        ) from err
    return np.asarray(pixels, np.uint8)
