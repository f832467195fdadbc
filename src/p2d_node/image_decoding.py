"""The bytes of a camera frame come in; pixels go out, or `ImageDecodeError` with the reason.

Raw frames of the usual 8-bit colour encodings are looked at in place: no byte is copied. Others go
through cv_bridge, packed YUV and JPEG through OpenCV.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from p2d_node.errors import BackendUnavailableError, ImageDecodeError
from p2d_node.records import CameraFrame, CompressedImageLike, DecodedFrame, RawImage, RawImageLike

IN_PLACE_ENCODINGS = {'rgb8': 'rgb', 'bgr8': 'bgr', '8UC3': 'bgr'}
"""Encodings that are used as they lie in the message, and their channel order."""

PACKED_YUV_CODES = {
    'yuv422': cv2.COLOR_YUV2RGB_UYVY,
    'uyvy': cv2.COLOR_YUV2RGB_UYVY,
    'yuv422_yuy2': cv2.COLOR_YUV2RGB_YUY2,
    'yuyv': cv2.COLOR_YUV2RGB_YUY2,
}
"""Two-byte encodings of many USB cameras, which the pure-Python cv_bridge does not know."""

BYTES_PER_PIXEL = {
    **dict.fromkeys(IN_PLACE_ENCODINGS, 3),
    **dict.fromkeys(PACKED_YUV_CODES, 2),
    'rgba8': 4,
    'bgra8': 4,
    'mono8': 1,
    'mono16': 2,
    'bayer_rggb8': 1,
    'bayer_bggr8': 1,
    'bayer_gbrg8': 1,
    'bayer_grbg8': 1,
}
"""Every raw encoding that is understood."""

JPEG_START, JPEG_END = b'\xff\xd8\xff', b'\xff\xd9'
PNG_START, PNG_END = b'\x89PNG\r\n\x1a\n', b'IEND'
TAIL_BYTES = 64
"""Where the end marker is looked for: some cameras pad their JPEGs with a few bytes."""

MAX_SIDE_PX = 16384
"""A longer side is taken for a broken header, not for a camera."""


def decode_frame(frame: CameraFrame) -> DecodedFrame:
    """Decode the payload of `frame`, a ROS image message or a record with the same fields.

    Returns:
        Pixels uint8 [height, width, 3]. For raw 8-bit colour they are a view of the message's
        bytes, padded rows included, so the message must outlive them.

    Raises:
        ImageDecodeError: Broken, truncated, mis-sized or in an encoding that is not understood.
        BackendUnavailableError: The encoding needs cv_bridge, which is not installed.
    """
    payload = frame.payload
    if isinstance(payload, RawImageLike):
        pixels, channel_order = _decode_raw(frame.camera, payload)
    elif isinstance(payload, CompressedImageLike):
        pixels, channel_order = _decode_compressed(frame.camera, payload)
    else:
        raise ImageDecodeError(
            f'{frame.camera}: got a payload of type {type(payload).__name__}, '
            'allowed: sensor_msgs Image or CompressedImage',
            camera=frame.camera,
        )
    return DecodedFrame(frame.camera, frame.stamp_ns, pixels, channel_order)


def _decode_raw(camera: str, image: RawImageLike) -> tuple[npt.NDArray[np.uint8], str]:
    data = _check_raw(camera, image)
    width_bytes = image.width * BYTES_PER_PIXEL[image.encoding]
    if image.encoding in IN_PLACE_ENCODINGS:
        shape = (image.height, image.width, 3)
        pixels = np.ndarray(shape, np.uint8, buffer=data, strides=(image.step, 3, 1))
        return pixels, IN_PLACE_ENCODINGS[image.encoding]
    rows = np.ndarray((image.height, image.step), np.uint8, buffer=data)[:, :width_bytes]
    if image.encoding in PACKED_YUV_CODES:
        packed = rows.reshape(image.height, image.width, 2)
        code = PACKED_YUV_CODES[image.encoding]
        return np.asarray(cv2.cvtColor(packed, code), np.uint8), 'rgb'
    return _convert_with_cv_bridge(camera, image, np.ascontiguousarray(rows)), 'rgb'


def _check_raw(camera: str, image: RawImageLike) -> npt.NDArray[np.uint8]:
    """Return the message's bytes as uint8 [bytes] without copying, or say what does not fit."""
    if image.encoding not in BYTES_PER_PIXEL:
        raise ImageDecodeError(
            f'{camera}: got encoding {image.encoding!r}, allowed: {", ".join(BYTES_PER_PIXEL)}',
            camera=camera,
        )
    if not (0 < image.height <= MAX_SIDE_PX and 0 < image.width <= MAX_SIDE_PX):
        raise ImageDecodeError(
            f'{camera}: got {image.width}x{image.height} px, allowed: 1 to {MAX_SIDE_PX} per side',
            camera=camera,
        )
    width_bytes = image.width * BYTES_PER_PIXEL[image.encoding]
    if image.step < width_bytes:
        raise ImageDecodeError(
            f'{camera}: got a row step of {image.step} bytes, allowed: at least {width_bytes} for '
            f'{image.width} px of {image.encoding}',
            camera=camera,
        )
    data = np.frombuffer(image.data, np.uint8)
    if data.size < image.step * image.height:
        raise ImageDecodeError(
            f'{camera}: got {data.size} bytes, allowed: at least {image.step * image.height} for '
            f'{image.height} rows of {image.step} bytes',
            camera=camera,
        )
    return data


def _convert_with_cv_bridge(
    camera: str, image: RawImageLike, rows: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    try:
        from cv_bridge import CvBridge
    except ImportError as err:
        raise BackendUnavailableError(
            f'{camera}: encoding {image.encoding!r} needs cv_bridge, which is not installed; '
            'install ros-<distro>-cv-bridge (or the PyPI package cv-bridge), or publish bgr8'
        ) from err
    # The pure-Python cv_bridge ignores `step`, so it gets rows without padding.
    compact = RawImage(
        height=image.height,
        width=image.width,
        encoding=image.encoding,
        step=rows.shape[1],
        is_bigendian=image.is_bigendian,
        data=rows.data,
    )
    try:
        pixels: Any = CvBridge().imgmsg_to_cv2(compact, 'rgb8')
    except Exception as err:  # cv_bridge raises whatever its conversion ran into
        raise ImageDecodeError(
            f'{camera}: cv_bridge could not convert {image.encoding!r} to rgb8: {err}',
            camera=camera,
        ) from err
    return np.asarray(pixels, np.uint8)


def _decode_compressed(
    camera: str, image: CompressedImageLike
) -> tuple[npt.NDArray[np.uint8], str]:
    data = np.frombuffer(image.data, np.uint8)
    start, tail = data[:8].tobytes(), data[-TAIL_BYTES:].tobytes()
    if not start.startswith((JPEG_START, PNG_START)):
        raise ImageDecodeError(
            f'{camera}: got {data.size} bytes of format {image.format!r} that start with '
            f'{start.hex() or "nothing"}, allowed: JPEG or PNG',
            camera=camera,
        )
    end = JPEG_END if start.startswith(JPEG_START) else PNG_END
    if end not in tail:
        # OpenCV would fill the missing part with grey and say nothing.
        raise ImageDecodeError(
            f'{camera}: got a truncated {image.format!r} of {data.size} bytes without its end '
            'marker; check the network and the publisher',
            camera=camera,
        )
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # a header that promises a picture too large for memory
        pixels = None
    if pixels is None:
        raise ImageDecodeError(
            f'{camera}: {data.size} bytes of format {image.format!r} do not decode; '
            'check the publisher',
            camera=camera,
        )
    return np.asarray(pixels, np.uint8), 'bgr'
