"""Camera images come in; a rosbag2 that `ros2 bag play` and `p2d replay` play goes out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
import shutil
import sqlite3
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from p2d_node.bags import ros_messages
from p2d_node.bags.limits import max_image_bytes
from p2d_node.bags.records import BagImage, image_topic
from p2d_node.compressed_images import AS_STORED
from p2d_node.durable_files import no_leftovers, write_faults
from p2d_node.errors import ConfigError
from p2d_node.whole_folders import new_folder, publish
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

STORAGES = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}
ENCODINGS = ('jpeg', 'bgr8')
COMPRESSIONS = ('none', 'zstd')
NO_ROOM_REMEDY = 'free disk space or name another folder'
BAG_VERSION: Literal[8] = 8
"""The newest version that all distributions from Humble on read."""

INFINITE = QosTime(9223372036, 854775807)
"""A time limit that never ends, as rosbag2 records it."""

OFFERED = Qos(
    history=QosHistory.KEEP_LAST,
    depth=10,
    reliability=QosReliability.RELIABLE,
    durability=QosDurability.VOLATILE,
    deadline=INFINITE,
    lifespan=INFINITE,
    liveliness=QosLiveliness.AUTOMATIC,
    liveliness_lease_duration=INFINITE,
    avoid_ros_namespace_conventions=False,
)
"""Reliable: `ros2 bag play` publishes so, and reliable and best-effort readers get the images."""


def write_bag(
    images: Iterable[BagImage],
    bag: Path,
    *,
    storage: str = 'mcap',
    encoding: str = 'jpeg',
    compression: str = 'none',
    source: Path | None = None,
) -> int:
    """Write `images` with their CameraInfo into a new bag.

    Header stamp and log time of a message are the capture stamp of its image. The bag appears
    under its name only when it is complete.

    Args:
        images: Images, best in the order of their capture stamps: the chunks of an MCAP file then
            do not overlap in time.
        bag: Folder of the bag; must not exist.
        storage: `mcap` or `sqlite3`.
        encoding: `jpeg` keeps the files as they are, `bgr8` writes raw images.
        compression: `zstd` compresses the chunks of an MCAP file, `none` does not.
        source: The bag that the images come from; None: they come from files, or are drawn. It
            limits what is written: images in a bag may expand to any size.

    Returns:
        The number of images.

    Raises:
        ConfigError: The bag exists, cannot be written or would fill the disk, `storage`,
            `encoding` or `compression` is not allowed, or there is no image.
    """
    _check_choice('storage', storage, STORAGES)
    _check_choice('encoding', encoding, ENCODINGS)
    _check_choice('compression', compression, COMPRESSIONS)
    if compression != 'none' and storage != 'mcap':
        raise ConfigError(f'compression: got {compression} with storage {storage}, allowed: mcap')
    with write_faults(f'bag: {bag}', NO_ROOM_REMEDY), no_leftovers(bag.parent):
        return _write_complete(
            images,
            bag,
            storage=storage,
            encoding=encoding,
            compression=compression,
            source=source,
        )


def _check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ConfigError(f'{name}: got {value!r}, allowed: {", ".join(allowed)}')


def _write_complete(
    images: Iterable[BagImage],
    bag: Path,
    *,
    storage: str,
    encoding: str,
    compression: str,
    source: Path | None,
) -> int:
    if bag.exists():
        raise ConfigError(f'bag: {bag} exists already; remove it or name another folder')
    bag.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(bag.parent, f'.{bag.name}-') as folder:
        # The file in the bag has the name of the folder it is written to.
        unfinished = folder / bag.name
        writer = Writer(unfinished, version=BAG_VERSION, storage_plugin=STORAGES[storage])
        if compression == 'zstd':
            # Each chunk by itself: rosbag2's storage plugin reads it without further settings.
            writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        if source is None:
            max_bytes = shutil.disk_usage(bag.parent).free // 2
        else:
            max_bytes = max_image_bytes(source, bag.parent)
        try:
            with writer:
                count = _write_images(_BagWriter(writer, encoding, max_bytes), images)
        except sqlite3.OperationalError as err:  # such as a full disk
            raise OSError(str(err)) from err
        if count == 0:
            raise ConfigError('there are no images to write; check the source')
        try:
            publish(unfinished, bag)
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

    def __init__(self, writer: Writer, encoding: str, max_bytes: int) -> None:
        self._writer = writer
        self._num_bytes, self._max_bytes = 0, max_bytes
        self._encoding = encoding
        self._connections: dict[str, Connection] = {}

    def write(self, image: BagImage) -> None:
        """Write one image and its CameraInfo."""
        header = ros_messages.header(image.stamp_ns, image.camera)
        topic = image_topic(image.camera, self._encoding)
        if self._encoding == 'jpeg':
            message = ros_messages.compressed_image(header, 'jpeg', image.jpeg)
        else:
            message = ros_messages.raw_image(header, _decode(image))
        self._write(topic, message, image.stamp_ns)
        matrix = np.array(image.camera_matrix, np.float64)
        info = ros_messages.camera_info(header, image.height, image.width, matrix)
        self._write(f'/{image.camera}/camera_info', info, image.stamp_ns)

    def _write(self, topic: str, message: Any, stamp_ns: int) -> None:
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic,
                message.__msgtype__,
                typestore=ros_messages.typestore(),
                offered_qos_profiles=[OFFERED],
            )
        data = ros_messages.serialize(message)
        self._num_bytes += len(data)
        if self._num_bytes > self._max_bytes:
            raise ConfigError(
                f'got images of {self._num_bytes} bytes, allowed: at most {self._max_bytes}, of '
                f'the size of the source and the free space; {NO_ROOM_REMEDY}'
            )
        self._writer.write(self._connections[topic], stamp_ns, data)


def _decode(image: BagImage) -> npt.NDArray[np.uint8]:
    pixels = cv2.imdecode(np.frombuffer(image.jpeg, np.uint8), AS_STORED)
    if pixels is None:
        raise ConfigError(f'{image.camera} at {image.stamp_ns}: the JPEG does not decode')
    return np.asarray(pixels, np.uint8)
