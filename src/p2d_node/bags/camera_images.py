"""A bag of any converter of nuScenes comes in; the images of its six cameras go out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2d_node.bags import ros_messages
from p2d_node.bags.image_files import to_bag_image
from p2d_node.bags.reading import BagReader, SerializedMessage
from p2d_node.bags.records import BagImage, UNCALIBRATED
from p2d_node.errors import ConfigError, quote
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.sweep_timing import OffsetLearner
from p2d_node.units import MAX_STAMP_NS, NS_PER_MS, NS_PER_S

TYPE_OF_TRANSPORT = {'raw': ros_messages.RAW_IMAGE, 'compressed': ros_messages.COMPRESSED_IMAGE}
IMAGE_TYPES = tuple(TYPE_OF_TRANSPORT.values())


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


@dataclass(frozen=True, slots=True)
class CameraTopic:
    """Where a bag has the images of a camera.

    Attributes:
        name: Name of the topic, as in the bag.
        transport: `raw` or `compressed`, as in `CameraConfig`.
    """

    name: str
    transport: str


def find_camera_topics(bag: BagReader) -> dict[str, CameraTopic]:
    """Return each of the six cameras and its topic; of two kinds the compressed one.

    Raises:
        ConfigError: A camera has no images, or two topics of one kind.
    """
    found: dict[str, CameraTopic] = {}
    for transport, type_name in TYPE_OF_TRANSPORT.items():
        for name, camera in _topics_of_cameras(bag, (type_name,)).items():
            found[camera] = CameraTopic(name, transport)
    missing = [camera for camera in NUSCENES_CAMERAS if camera not in found]
    if missing:
        raise ConfigError(
            f'{bag.source}: got no images of {", ".join(missing)}, allowed: a bag with a topic of '
            'images for each of the six cameras, whose name has that of the camera between '
            'slashes, such as /CAM_FRONT/image or cam_front/raw'
        )
    return {camera: found[camera] for camera in NUSCENES_CAMERAS}


def learn_exposure_offsets(
    bag: BagReader,
    topics: Mapping[str, CameraTopic],
    known_ms: Mapping[str, float],
    tolerance_ms: float,
) -> dict[str, float]:
    """Return the exposure of each camera within a sweep, ms.

    The known ones hold unless the stamps at the begin of the bag show others. A shorter bag than
    `OFFSET_SAMPLES` frames per camera shows none.

    Args:
        bag: The bag.
        topics: Camera to its topic; the first camera is the reference.
        known_ms: Camera to its usual exposure, ms.
        tolerance_ms: Largest error of an exposure that is right.

    Raises:
        ConfigError: The bag is damaged.
    """
    cameras = {topic.name: camera for camera, topic in topics.items()}
    learner = OffsetLearner(tuple(topics), next(iter(topics)))
    for recorded in bag.messages():
        if (camera := cameras.get(recorded.topic)) is None:
            continue
        with bag.faults():
            _, stamp_ns = _deserialize(bag, recorded)
            learner.add(camera, stamp_ns, recorded.log_time_ns)
        if learner.ready(recorded.log_time_ns):
            break
    known_ns = {camera: round(ms * NS_PER_MS) for camera, ms in known_ms.items()}
    changed_ns = learner.changed_offsets_ns(known_ns, round(tolerance_ms * NS_PER_MS))
    return {**known_ms, **{camera: ns / NS_PER_MS for camera, ns in changed_ns.items()}}


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
            message, stamp_ns = _deserialize(bag, recorded)
        yield CameraMessage(camera, stamp_ns, message)


def _deserialize(bag: BagReader, recorded: SerializedMessage) -> tuple[Any, int]:
    """Return a message and the stamp in its header, nanoseconds since the epoch.

    Raises:
        ValueError: The stamp is not one that a ROS node may set.
    """
    message = ros_messages.deserialize(recorded.data, bag.topics[recorded.topic])
    stamp = message.header.stamp
    stamp_ns = ros_messages.stamp_ns_of(message)
    if stamp.nanosec >= NS_PER_S or not 0 <= stamp_ns <= MAX_STAMP_NS:
        raise ValueError(
            f'{quote(recorded.topic)}: got a stamp of {stamp.sec} s and {stamp.nanosec} ns, '
            f'allowed: 0 to {MAX_STAMP_NS // NS_PER_S} s in all, and less than 1e9 ns'
        )
    return message, stamp_ns


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
