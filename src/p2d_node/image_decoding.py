"""The bytes of a camera frame come in; pixels go out.

Raw frames in 8-bit RGB or BGR are used in place, without a copy. OpenCV converts the other common
encodings, JPEG and PNG; cv_bridge converts rare ones, as far as the installed one can.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from p2d_node.errors import ImageDecodeError
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

BAYER_CODES = {
    'bayer_rggb8': cv2.COLOR_BayerBG2RGB,
    'bayer_bggr8': cv2.COLOR_BayerRG2RGB,
    'bayer_gbrg8': cv2.COLOR_BayerGR2RGB,
    'bayer_grbg8': cv2.COLOR_BayerGB2RGB,
}
"""ROS names the first two rows of the mosaic, OpenCV the second and third pixel of the second."""

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

JPEG_START, JPEG_END = b'\xff\xd8\xff', b'\xff\xd9'
PNG_START, PNG_END = b'\x89PNG\r\n\x1a\n', b'IEND'
TAIL_BYTES = 64
"""The end marker must be within the last bytes before the padding; some cameras add a few."""

PADDING_STEP = 1 << 16
"""Trailing zeros are skipped in steps of so many bytes; UVC drivers pass on a whole buffer."""

MAX_SIDE_PX = 16384
"""A longer side means that the header is broken."""


def decode_frame(frame: CameraFrame) -> DecodedFrame:
    """Decode the payload of `frame`, a ROS image message or a record with the same fields.

    Returns:
        Pixels uint8 [height, width, 3]. For raw RGB and BGR they are a view of the message's
        bytes, also if its rows are padded, so the message must outlive them.

    Raises:
        ImageDecodeError: The frame is broken, truncated or in an unsupported encoding.
    """
    payload = frame.payload
    if isinstance(payload, RawImageLike):
        pixels, channel_order = _decode_raw(frame.camera, payload)
    elif isinstance(payload, CompressedImageLike):
        pixels, channel_order = _decode_compressed(frame.camera, payload)
    else:
        raise _decode_error(
            frame.camera,
            f'got a payload of type {type(payload).__name__}, '
            'allowed: sensor_msgs Image or CompressedImage',
        )
    return DecodedFrame(frame.camera, frame.stamp_ns, pixels, channel_order)


def _decode_error(camera: str, reason: str) -> ImageDecodeError:
    return ImageDecodeError(f'{camera}: {reason}', camera=camera)


def _decode_raw(camera: str, image: RawImageLike) -> tuple[npt.NDArray[np.uint8], str]:
    data = _check_raw(camera, image)
    height, width, encoding = image.height, image.width, image.encoding
    if encoding not in BYTES_PER_PIXEL:
        return _convert_with_cv_bridge(camera, image), 'rgb'
    if encoding in IN_PLACE_ENCODINGS:
        pixels = np.ndarray((height, width, 3), np.uint8, data, strides=(image.step, 3, 1))
        return pixels, IN_PLACE_ENCODINGS[encoding]
    if encoding in PACKED_YUV_CODES and width % 2:
        raise _decode_error(camera, f'got a width of {width} px, allowed: an even one, {encoding}')
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
    if not (0 < image.height <= MAX_SIDE_PX and 0 < image.width <= MAX_SIDE_PX):
        raise _decode_error(
            camera, f'got {image.width}x{image.height} px, allowed: 1 to {MAX_SIDE_PX} per side'
        )
    width_bytes = image.width * BYTES_PER_PIXEL.get(image.encoding, 1)
    if image.step < width_bytes:
        raise _decode_error(
            camera,
            f'got a row step of {image.step} bytes, allowed: at least {width_bytes} for '
            f'{image.width} px of {image.encoding}',
        )
    data = np.frombuffer(image.data, np.uint8)
    if data.size < image.step * image.height:
        raise _decode_error(
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
        raise _decode_error(
            camera,
            f'got encoding {image.encoding!r}, allowed: {", ".join(BYTES_PER_PIXEL)}, or what the '
            'installed cv_bridge converts to rgb8; set the camera driver to one of these',
        ) from err
    return np.asarray(pixels, np.uint8)


def _decode_compressed(
    camera: str, image: CompressedImageLike
) -> tuple[npt.NDArray[np.uint8], str]:
    data = check_compressed(camera, image.format, image.data)
    # image_transport names the raw encoding first: 'bayer_rggb8; jpeg compressed '.
    encoding, _, compression = image.format.partition(';')
    bayer_code = BAYER_CODES.get(encoding.strip().replace('16', '8'))
    colour = cv2.IMREAD_COLOR if bayer_code is None else cv2.IMREAD_ANYCOLOR
    try:
        pixels = cv2.imdecode(data, colour | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # a header with an image size that exceeds the memory
        pixels = None
    if pixels is None:
        raise _decode_error(
            camera,
            f'{data.size} bytes of format {image.format!r} do not decode; check the publisher',
        )
    if pixels.ndim == 2 and bayer_code is not None:
        return np.asarray(cv2.cvtColor(pixels, bayer_code), np.uint8), 'rgb'
    # Its subscriber takes the channels as they lie in the file for what this word says.
    order = 'rgb' if 'compressed rgb' in compression else 'bgr'
    return np.asarray(pixels, np.uint8), order


def check_compressed(camera: str, text: str, content: Any) -> npt.NDArray[np.uint8]:
    """Return the bytes of a file as uint8 [bytes], after checking that the file is whole.

    Args:
        camera: Name of the camera, for messages.
        text: The format, for messages.
        content: The bytes.

    Raises:
        ImageDecodeError: It is no JPEG or PNG file, or is truncated.
    """
    data = np.frombuffer(content, np.uint8)
    start = data[:8].tobytes()
    if not start.startswith((JPEG_START, PNG_START)):
        raise _decode_error(
            camera,
            f'got {data.size} bytes of format {text!r} that start with '
            f'{start.hex() or "nothing"}, allowed: JPEG or PNG',
        )
    end = JPEG_END if start.startswith(JPEG_START) else PNG_END
    if end not in _tail_before_padding(data):
        # OpenCV would fill the missing part with grey without an error.
        raise _decode_error(
            camera,
            f'got a truncated {text!r} of {data.size} bytes without its end '
            'marker; check the network and the publisher',
        )
    return data


def _tail_before_padding(data: npt.NDArray[np.uint8]) -> bytes:
    """Return the last bytes before trailing zeros."""
    end = data.size
    while end and not data[max(0, end - PADDING_STEP) : end].any():
        end -= PADDING_STEP
    block = data[max(0, end - PADDING_STEP - TAIL_BYTES) : max(0, end)]
    return block.tobytes().rstrip(b'\0')[-TAIL_BYTES:]
