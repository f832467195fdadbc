"""A bag of any converter of nuScenes comes in; the images of its six cameras go out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2d_node.bags import ros_messages
from p2d_node.bags.image_files import to_bag_image
from p2d_node.bags.reading import BagReader
from p2d_node.bags.records import BagImage, UNCALIBRATED
from p2d_node.errors import ConfigError, quote
from p2d_node.records import NUSCENES_CAMERAS

IMAGE_TYPES = (ros_messages.COMPRESSED_IMAGE, ros_messages.RAW_IMAGE)


@dataclass(frozen=True, slots=True)
class CameraMessage:
    """One message of a camera.

    Attributes:
        camera: Name of the camera.
        stamp_ns: Capture stamp in its header, nanoseconds since the epoch.
        message: The ROS message.
    """

    camera: str
    stamp_ns: int
    message: Any


def camera_of(topic: str) -> str | None:
    """Return the nuScenes camera that a part of a topic's name is; None if there is none.

    Converters write `/CAM_FRONT/...`, `cam_front/...` or `/nuscenes/cam_front/...`.
    """
    parts = topic.upper().split('/')
    return next((camera for camera in NUSCENES_CAMERAS if camera in parts), None)


def read_camera_messages(bag: BagReader, types: tuple[str, ...]) -> Iterator[CameraMessage]:
    """Yield the messages of these types about the six cameras, in the order of log times.

    Raises:
        ConfigError: The bag is damaged, or has two topics of a type for one camera.
    """
    cameras = _topics_of_cameras(bag, types)
    for recorded in bag.messages():
        camera = cameras.get(recorded.topic)
        if camera is None:
            continue
        with bag.faults():
            message = ros_messages.deserialize(recorded.data, bag.topics[recorded.topic])
            stamp_ns = ros_messages.stamp_ns_of(message)
        yield CameraMessage(camera, stamp_ns, message)


def _topics_of_cameras(bag: BagReader, types: tuple[str, ...]) -> dict[str, str]:
    """Return topic to camera."""
    found: dict[str, str] = {}
    for topic, type_name in bag.topics.items():
        camera = camera_of(topic)
        if camera is None or type_name not in types:
            continue
        others = [name for name, other in found.items() if other == camera]
        if others:
            raise ConfigError(
                f'{bag.source}: {camera} has the topics {quote(others[0])} and {quote(topic)}, '
                'allowed: one; remove one with: rosbags-convert --exclude-topic'
            )
        found[topic] = camera
    return found


def read_bag_images(path: Path, *, parameter: str = 'bag') -> Iterator[BagImage]:
    """Yield the JPEG images of the six cameras, with the first calibration of each.

    Args:
        path: A rosbag2, or a file of nuscenes2mcap.
        parameter: The parameter that names it; messages begin with it.

    Raises:
        ConfigError: The bag cannot be read, or has raw images.
    """
    with BagReader(path, parameter=parameter) as bag:
        matrices = _read_matrices(bag)
    with BagReader(path, parameter=parameter) as bag:
        for item in read_camera_messages(bag, IMAGE_TYPES):
            source = f'{bag.source}: {item.camera} at {item.stamp_ns} ns'
            if item.message.__msgtype__ != ros_messages.COMPRESSED_IMAGE:
                raise ConfigError(f'{source}: got a raw image, allowed: JPEG; play the bag itself')
            yield to_bag_image(
                item.message.data.tobytes(),
                source,
                camera=item.camera,
                stamp_ns=item.stamp_ns,
                camera_matrix=matrices.get(item.camera, UNCALIBRATED),
            )


def _read_matrices(bag: BagReader) -> dict[str, tuple[float, ...]]:
    """Return the first camera matrix of each camera, row by row."""
    matrices: dict[str, tuple[float, ...]] = {}
    for item in read_camera_messages(bag, (ros_messages.CAMERA_INFO,)):
        matrices.setdefault(item.camera, tuple(item.message.k.tolist()))
        if len(matrices) == len(NUSCENES_CAMERAS):
            break
    return matrices
