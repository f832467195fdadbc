"""Tiny bags in the shapes that the converters of nuScenes write, after their sources.

Each writer gets the images of some sweeps in the order of their capture, and returns the bag.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
import subprocess
import sys
from typing import Any

import cv2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from mcap_protobuf.writer import Writer as ProtobufWriter
import numpy as np
from p2d_node.bags.records import BagImage
from p2d_node.bags.writing import write_bag
from p2d_node.config import NUSCENES_EXPOSURE_OFFSETS_MS
from p2d_node.units import NS_PER_MS, NS_PER_S
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from sweeps import jpeg, picture

START_NS = 1_533_280_036_154_844_000
K = (1266.4, 0.0, 80.0, 0.0, 1266.4, 45.0, 0.0, 0.0, 1.0)
SENSOR_DATA = Qos(
    QosHistory.KEEP_LAST,
    5,
    QosReliability.BEST_EFFORT,
    QosDurability.VOLATILE,
    QosTime(0, 0),
    QosTime(0, 0),
    QosLiveliness.AUTOMATIC,
    QosTime(0, 0),
    False,
)
BRIDGE_ORDER = (
    'CAM_BACK',
    'CAM_FRONT',
    'CAM_FRONT_LEFT',
    'CAM_FRONT_RIGHT',
    'CAM_BACK_RIGHT',
    'CAM_BACK_LEFT',
)


def capture(num_sweeps: int, period_ms: float = 83.0) -> list[BagImage]:
    """Return the images of some sweeps with the timing of nuScenes, in the order of capture."""
    images = []
    for sweep in range(num_sweeps):
        for number, (camera, offset_ms) in enumerate(NUSCENES_EXPOSURE_OFFSETS_MS.items()):
            ms = sweep * period_ms + offset_ms
            images.append(
                BagImage(
                    camera=camera,
                    stamp_ns=START_NS + round(ms * NS_PER_MS),
                    jpeg=jpeg(picture(sweep * 10 + number)).data,
                    height=90,
                    width=160,
                    camera_matrix=K,
                )
            )
    return sorted(images, key=lambda image: image.stamp_ns)


@dataclass
class Messages:
    """Makes messages of ROS 1 or 2 and writes them."""

    writer: Any
    store: Any
    qos: Sequence[Qos] = ()

    def __post_init__(self) -> None:
        self._connections: dict[str, Any] = {}

    def header(self, frame_id: str, stamp_ns: int) -> Any:
        sec, nanosec = divmod(stamp_ns, NS_PER_S)
        time = self.store.types['builtin_interfaces/msg/Time'](sec=sec, nanosec=nanosec)
        header = self.store.types['std_msgs/msg/Header']
        fields = {'stamp': time, 'frame_id': frame_id}
        if 'seq' in header.__dataclass_fields__:
            fields['seq'] = 7
        return header(**fields)

    def compressed(self, frame_id: str, image: BagImage) -> Any:
        return self.store.types['sensor_msgs/msg/CompressedImage'](
            header=self.header(frame_id, image.stamp_ns),
            format='jpeg',
            data=np.frombuffer(image.jpeg, np.uint8),
        )

    def raw(self, frame_id: str, image: BagImage, *, encoding: str, stamp_ns: int) -> Any:
        return self.store.types['sensor_msgs/msg/Image'](
            header=self.header(frame_id, stamp_ns),
            height=image.height,
            width=image.width,
            encoding=encoding,
            is_bigendian=0,
            step=3 * image.width,
            data=pixels_of(image).reshape(-1),
        )

    def write(self, topic: str, message: Any, log_time_ns: int) -> None:
        if topic not in self._connections:
            qos = {'offered_qos_profiles': self.qos} if self.qos else {}
            self._connections[topic] = self.writer.add_connection(
                topic, message.__msgtype__, typestore=self.store, **qos
            )
        ros1 = isinstance(self.writer, Rosbag1Writer)
        serialize = self.store.serialize_ros1 if ros1 else self.store.serialize_cdr
        self.writer.write(
            self._connections[topic], log_time_ns, serialize(message, message.__msgtype__)
        )


def pixels_of(image: BagImage) -> np.ndarray:
    """Return the decoded pixels, BGR."""
    return cv2.imdecode(np.frombuffer(image.jpeg, np.uint8), cv2.IMREAD_COLOR)


def open_ros2_bag(folder: Path, qos: Sequence[Qos] = ()) -> tuple[Path, Messages]:
    bag = folder / 'bag'
    writer = Writer(bag, version=8, storage_plugin=StoragePlugin.MCAP)
    writer.open()
    return bag, Messages(writer, get_typestore(Stores.ROS2_HUMBLE), qos)


def late_of_keyframes(images: Sequence[BagImage]) -> list[tuple[int, BagImage]]:
    """Return log time and image: keyframes, every sixth sweep, have that of the lidar."""
    timed = []
    for number, image in enumerate(images):
        first = images[number - number % 6]
        is_keyframe = number // 6 % 6 == 0
        timed.append((first.stamp_ns + 45 * NS_PER_MS if is_keyframe else image.stamp_ns, image))
    return sorted(timed, key=lambda item: item[0])


def write_nuscenes_to_ros2bag(folder: Path, images: Sequence[BagImage]) -> Path:
    bag, messages = open_ros2_bag(folder)
    for log_time_ns, image in late_of_keyframes(images):
        topic = f'/{image.camera}/image_rect_compressed'
        messages.write(topic, messages.compressed(image.camera, image), log_time_ns)
    messages.writer.close()
    return bag


def write_nuscenes_to_ros2bag_chris7462(folder: Path, images: Sequence[BagImage]) -> Path:
    bag, messages = open_ros2_bag(folder, [SENSOR_DATA])
    for image in images:
        name = image.camera.lower()
        raw = messages.raw(f'{name}_link', image, encoding='bgr8', stamp_ns=image.stamp_ns)
        messages.write(f'/nuscenes/{name}/image_raw', raw, image.stamp_ns)
    messages.writer.close()
    return bag


def write_ros2_dataset_bridge(folder: Path, images: Sequence[BagImage]) -> Path:
    """Record what the bridge publishes: one image after another, stamped when it is published."""
    bag, messages = open_ros2_bag(folder)
    random = np.random.default_rng(1)
    for number, image in enumerate(images):
        sweep, place = number // 6, BRIDGE_ORDER.index(image.camera)
        now_ms = 250.0 * sweep + 24.0 * place + random.uniform(0.0, 6.0)
        stamp_ns = START_NS + round(now_ms * NS_PER_MS)
        raw = messages.raw(image.camera, image, encoding='8UC3', stamp_ns=stamp_ns)
        messages.write(f'/nuscenes/{image.camera}/image', raw, stamp_ns)
    messages.writer.close()
    return bag


def write_nuscenes2bag(folder: Path, images: Sequence[BagImage]) -> Path:
    """Write a bag of ROS 1, and convert it with the command of the preset's comment."""
    with Rosbag1Writer(folder / '61.bag') as writer:
        messages = Messages(writer, get_typestore(Stores.ROS1_NOETIC))
        for image in images:
            name = image.camera.lower()
            raw = messages.raw(name, image, encoding='bgr8', stamp_ns=image.stamp_ns)
            messages.write(f'{name}/raw', raw, image.stamp_ns)
    preset = Path(__file__).parents[1] / 'config' / 'cameras' / 'nuscenes2bag.yaml'
    (command,) = (line for line in preset.read_text().splitlines() if 'rosbags-convert' in line)
    program, *arguments = command.lstrip('# ').split()
    tool = Path(sys.executable).with_name(program)
    subprocess.run([tool, *arguments], cwd=folder, check=True, timeout=60)
    return folder / 'scene-0061'


def foxglove_class(name: str, fields: Sequence[tuple[str, int, int, bool]]) -> Any:
    """Return the class of a message `foxglove.<name>`: fields as name, number, type, is list."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f'foxglove/{name}.proto',
        package='foxglove',
        syntax='proto3',
        dependency=['google/protobuf/timestamp.proto'],
    )
    message = file.message_type.add(name=name)
    message.field.add(
        name='timestamp',
        number=1,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
        type_name='.google.protobuf.Timestamp',
    )
    for field_name, number, kind, is_list in fields:
        label = descriptor_pb2.FieldDescriptorProto.Label.Value(
            'LABEL_REPEATED' if is_list else 'LABEL_OPTIONAL'
        )
        message.field.add(name=field_name, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    for part in (timestamp_pb2.DESCRIPTOR.serialized_pb, file.SerializeToString()):
        pool.AddSerializedFile(part)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f'foxglove.{name}'))


KINDS = descriptor_pb2.FieldDescriptorProto
IMAGE_FIELDS = (
    ('data', 2, KINDS.TYPE_BYTES, False),
    ('format', 3, KINDS.TYPE_STRING, False),
    ('frame_id', 4, KINDS.TYPE_STRING, False),
)
CALIBRATION_FIELDS = (
    ('width', 2, KINDS.TYPE_FIXED32, False),
    ('height', 3, KINDS.TYPE_FIXED32, False),
    ('distortion_model', 4, KINDS.TYPE_STRING, False),
    *((name, number, KINDS.TYPE_DOUBLE, True) for number, name in enumerate('DKRP', 5)),
    ('frame_id', 9, KINDS.TYPE_STRING, False),
)


def write_foxglove(folder: Path, images: Sequence[BagImage]) -> Path:
    image_class = foxglove_class('CompressedImage', IMAGE_FIELDS)
    calibration_class = foxglove_class('CameraCalibration', CALIBRATION_FIELDS)
    other_class = foxglove_class('PoseInFrame', ())
    path = folder / 'NuScenes-v1.0-mini-scene-0061.mcap'
    with path.open('wb') as file, ProtobufWriter(file, chunk_size=20_000) as writer:
        for log_time_ns, image in late_of_keyframes(images):
            name = image.camera.lower()
            seconds, nanos = divmod(image.stamp_ns, NS_PER_S)
            common = {'timestamp': {'seconds': seconds, 'nanos': nanos}, 'frame_id': name}
            picture = image_class(**common, format='jpeg', data=image.jpeg)
            calibration = calibration_class(**common, width=160, height=90, K=K)
            writer.write_message('/pose', other_class(timestamp=common['timestamp']), log_time_ns)
            writer.write_message(f'/{name}/image_rect_compressed', picture, log_time_ns)
            writer.write_message(f'/{name}/camera_info', calibration, log_time_ns)
    return path


def write_p2d(folder: Path, images: Sequence[BagImage]) -> Path:
    write_bag(images, folder / 'bag')
    return folder / 'bag'


WRITERS: dict[str, Callable[[Path, Sequence[BagImage]], Path]] = {
    name.removeprefix('write_'): write
    for name, write in list(globals().items())
    if name.startswith('write_') and name != 'write_bag'
}
"""Name of the preset to the writer of a bag in the shape of its converter."""
