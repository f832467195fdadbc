"""Makes, serializes and reads ROS messages, without ROS."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from p2d_node.units import NS_PER_S
from rosbags.typesys import get_typestore, Stores
from rosbags.typesys.store import Typestore

COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
RAW_IMAGE = 'sensor_msgs/msg/Image'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'


@cache
def typestore() -> Typestore:
    """Return the message definitions of Humble; later distributions have the same ones."""
    return get_typestore(Stores.ROS2_HUMBLE)


def serialize(message: Any) -> memoryview:
    """Return a message in CDR."""
    return typestore().serialize_cdr(message, message.__msgtype__)


def deserialize(data: bytes | memoryview, type_name: str) -> Any:
    """Return the message that CDR bytes hold."""
    return typestore().deserialize_cdr(data, type_name)


def stamp_ns_of(message: Any) -> int:
    """Return the stamp in the header of a message, nanoseconds since the epoch."""
    stamp = message.header.stamp
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


def header(stamp_ns: int, frame_id: str) -> Any:
    """Return a `std_msgs/Header`; the stamp is in nanoseconds since the epoch."""
    sec, nanosec = divmod(stamp_ns, NS_PER_S)
    stamp = _type('builtin_interfaces/msg/Time')(sec=sec, nanosec=nanosec)
    return _type('std_msgs/msg/Header')(stamp=stamp, frame_id=frame_id)


def compressed_image(header: Any, format: str, content: bytes) -> Any:
    """Return a `sensor_msgs/CompressedImage` of the bytes of an image file."""
    data = np.frombuffer(content, np.uint8)
    return _type(COMPRESSED_IMAGE)(header=header, format=format, data=data)


def raw_image(header: Any, pixels: npt.NDArray[np.uint8]) -> Any:
    """Return a `sensor_msgs/Image` of BGR pixels, uint8 [height, width, 3]."""
    height, width, _ = pixels.shape
    return _type(RAW_IMAGE)(
        header=header,
        height=height,
        width=width,
        encoding='bgr8',
        is_bigendian=0,
        step=3 * width,
        data=pixels.reshape(-1),
    )


def camera_info(header: Any, height: int, width: int, matrix: npt.NDArray[np.float64]) -> Any:
    """Return a `sensor_msgs/CameraInfo` of an image without distortion.

    Args:
        header: That of the image.
        height: Of the image, pixels.
        width: Of the image, pixels.
        matrix: Intrinsics [9], row by row; zeros where unknown.
    """
    region = _type('sensor_msgs/msg/RegionOfInterest')(
        x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
    )
    return _type(CAMERA_INFO)(
        header=header,
        height=height,
        width=width,
        distortion_model='plumb_bob',
        d=np.zeros(5),
        k=matrix,
        r=np.eye(3).reshape(-1),
        p=np.hstack([matrix.reshape(3, 3), np.zeros((3, 1))]).reshape(-1),
        binning_x=0,
        binning_y=0,
        roi=region,
    )


def _type(name: str) -> Any:
    return typestore().types[name]
