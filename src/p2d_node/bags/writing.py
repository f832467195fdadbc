"""Camera images come in; a rosbag2 that `ros2 bag play` and `p2d replay` play goes out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
import tempfile
from typing import Any, Literal

import cv2
import numpy as np
from p2d_node.bags.records import BagImage, image_topic
from p2d_node.durable_files import no_leftovers, write_faults
from p2d_node.errors import ConfigError
from p2d_node.units import NS_PER_S
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

STORAGES = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}
ENCODINGS = ('jpeg', 'bgr8')
NO_ROOM_REMEDY = 'free disk space or name another folder'
BAG_VERSION: Literal[8] = 8
"""The newest version that all distributions from Humble on read."""

TYPESTORE = Stores.ROS2_HUMBLE


def write_bag(
    images: Iterable[BagImage], bag: Path, *, storage: str = 'mcap', encoding: str = 'jpeg'
) -> int:
    """Write `images` with their CameraInfo into a new bag.

    Header stamp and log time of a message are the capture stamp of its image. The bag appears
    under its name only when it is complete.

    Args:
        images: Images in the order of their capture stamps.
        bag: Folder of the bag; must not exist.
        storage: `mcap` or `sqlite3`.
        encoding: `jpeg` keeps the files as they are, `bgr8` writes raw images.

    Returns:
        The number of images.

    Raises:
        ConfigError: The bag exists or cannot be written, `storage` or `encoding` is not allowed,
            or there is no image.
    """
    if storage not in STORAGES:
        raise ConfigError(f'storage: got {storage!r}, allowed: {", ".join(STORAGES)}')
    if encoding not in ENCODINGS:
        raise ConfigError(f'encoding: got {encoding!r}, allowed: {", ".join(ENCODINGS)}')
    with write_faults(f'bag: {bag}', NO_ROOM_REMEDY), no_leftovers(bag.parent):
        return _write_complete(images, bag, storage, encoding)


def _write_complete(images: Iterable[BagImage], bag: Path, storage: str, encoding: str) -> int:
    if bag.exists():
        raise ConfigError(f'bag: {bag} exists already; remove it or name another folder')
    bag.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{bag.name}-', dir=bag.parent) as folder:
        # The file in the bag has the name of the folder it is written to.
        unfinished = Path(folder) / bag.name
        with Writer(unfinished, version=BAG_VERSION, storage_plugin=STORAGES[storage]) as writer:
            count = _write_images(_BagWriter(writer, encoding), images)
        if count == 0:
            raise ConfigError('there are no images to write; check the source')
        try:
            unfinished.rename(bag)
        except OSError as err:
            if not bag.exists():
                raise
            raise ConfigError(
                f'bag: {bag} was written by another process meanwhile; name another folder'
            ) from err
    return count


def _write_images(writer: _BagWriter, images: Iterable[BagImage]) -> int:
    count = 0
    for image in images:
        writer.write(image)
        count += 1
    return count


class _BagWriter:
    """Converts images to messages and writes them, with one connection per topic."""

    def __init__(self, writer: Writer, encoding: str) -> None:
        self._writer = writer
        self._encoding = encoding
        self._typestore = get_typestore(TYPESTORE)
        self._connections: dict[str, Connection] = {}

    def write(self, image: BagImage) -> None:
        """Write one image and its CameraInfo."""
        header = self._header(image)
        topic = image_topic(image.camera, self._encoding)
        if self._encoding == 'jpeg':
            message = self._compressed(header, image)
        else:
            message = self._raw(header, image)
        self._write(topic, message, image.stamp_ns)
        info = self._camera_info(header, image)
        self._write(f'/{image.camera}/camera_info', info, image.stamp_ns)

    def _write(self, topic: str, message: Any, stamp_ns: int) -> None:
        msgtype = message.__msgtype__
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, msgtype, typestore=self._typestore
            )
        data = self._typestore.serialize_cdr(message, msgtype)
        self._writer.write(self._connections[topic], stamp_ns, data)

    def _type(self, name: str) -> Any:
        return self._typestore.types[name]

    def _header(self, image: BagImage) -> Any:
        sec, nanosec = divmod(image.stamp_ns, NS_PER_S)
        stamp = self._type('builtin_interfaces/msg/Time')(sec=sec, nanosec=nanosec)
        return self._type('std_msgs/msg/Header')(stamp=stamp, frame_id=image.camera)

    def _compressed(self, header: Any, image: BagImage) -> Any:
        data = np.frombuffer(image.jpeg, np.uint8)
        message_type = self._type('sensor_msgs/msg/CompressedImage')
        return message_type(header=header, format='jpeg', data=data)

    def _raw(self, header: Any, image: BagImage) -> Any:
        pixels = cv2.imdecode(np.frombuffer(image.jpeg, np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            raise ConfigError(f'{image.camera} at {image.stamp_ns}: the JPEG does not decode')
        return self._type('sensor_msgs/msg/Image')(
            header=header,
            height=image.height,
            width=image.width,
            encoding='bgr8',
            is_bigendian=0,
            step=3 * image.width,
            data=np.asarray(pixels, np.uint8).reshape(-1),
        )

    def _camera_info(self, header: Any, image: BagImage) -> Any:
        k = np.array(image.camera_matrix, np.float64)
        region = self._type('sensor_msgs/msg/RegionOfInterest')(
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        return self._type('sensor_msgs/msg/CameraInfo')(
            header=header,
            height=image.height,
            width=image.width,
            distortion_model='plumb_bob',
            d=np.zeros(5),
            k=k,
            r=np.eye(3).reshape(-1),
            p=np.hstack([k.reshape(3, 3), np.zeros((3, 1))]).reshape(-1),
            binning_x=0,
            binning_y=0,
            roi=region,
        )
