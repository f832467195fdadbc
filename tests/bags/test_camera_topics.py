"""The topics and the timing of the cameras are those of the bag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from converter_bags import capture, Messages, START_NS, WRITERS
from p2d_node.bags.camera_images import CameraTopic, find_camera_topics, learn_exposure_offsets
from p2d_node.bags.reading import BagReader
from p2d_node.bags.records import BagImage
from p2d_node.config import NUSCENES_EXPOSURE_OFFSETS_MS
from p2d_node.errors import ConfigError
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.units import NS_PER_MS
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

TOLERANCE_MS = 24.0


def write(folder: Path, images: Sequence[BagImage], kinds: Sequence[str]) -> Path:
    """A bag with `kinds` of images of each camera: raw, compressed."""
    with Writer(folder / 'bag', version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        messages = Messages(writer, get_typestore(Stores.ROS2_HUMBLE))
        for image in images:
            if 'raw' in kinds:
                raw = messages.raw('', image, encoding='bgr8', stamp_ns=image.stamp_ns)
                messages.write(f'/{image.camera}/image', raw, image.stamp_ns)
            if 'compressed' in kinds:
                compressed = messages.compressed('', image)
                messages.write(f'/{image.camera}/image/compressed', compressed, image.stamp_ns)
    return folder / 'bag'


@pytest.mark.parametrize(
    ('preset', 'name', 'transport'),
    [
        ('nuscenes2bag', 'cam_back/raw', 'raw'),
        ('nuscenes_to_ros2bag', '/CAM_BACK/image_rect_compressed', 'compressed'),
        ('nuscenes_to_ros2bag_chris7462', '/nuscenes/cam_back/image_raw', 'raw'),
        ('ros2_dataset_bridge', '/nuscenes/CAM_BACK/image', 'raw'),
        ('foxglove', '/cam_back/image_rect_compressed', 'compressed'),
        ('p2d', '/CAM_BACK/image_rect/compressed', 'compressed'),
    ],
)
def test_every_converters_topics_are_found(tmp_path, preset, name, transport):
    with BagReader(WRITERS[preset](tmp_path, capture(2))) as bag:
        topics = find_camera_topics(bag)
    assert tuple(topics) == NUSCENES_CAMERAS
    assert topics['CAM_BACK'] == CameraTopic(name, transport)


def test_of_two_kinds_of_images_the_compressed_ones_are_taken(tmp_path):
    with BagReader(write(tmp_path, capture(2), ('raw', 'compressed'))) as bag:
        topics = find_camera_topics(bag)
    assert {topic.transport for topic in topics.values()} == {'compressed'}


def test_a_bag_without_a_camera_is_refused_with_its_name(tmp_path):
    images = [image for image in capture(2) if image.camera != 'CAM_BACK_LEFT']
    with (
        BagReader(write(tmp_path, images, ('raw',))) as bag,
        pytest.raises(ConfigError, match='got no images of CAM_BACK_LEFT, allowed: a bag with'),
    ):
        find_camera_topics(bag)


def learned(bag_path: Path) -> dict[str, float]:
    with BagReader(bag_path) as bag:
        topics = find_camera_topics(bag)
        return learn_exposure_offsets(bag, topics, NUSCENES_EXPOSURE_OFFSETS_MS, TOLERANCE_MS)


@pytest.mark.parametrize('num_sweeps', [1, 20])
def test_the_usual_exposures_hold_where_the_stamps_fit_them(tmp_path, num_sweeps):
    bag = write(tmp_path, capture(num_sweeps), ('compressed',))
    assert learned(bag) == NUSCENES_EXPOSURE_OFFSETS_MS


def test_cameras_that_are_triggered_together_have_the_exposure_of_the_first(tmp_path):
    together = [
        replace(image, stamp_ns=START_NS + 100 * NS_PER_MS * (number // 6))
        for number, image in enumerate(capture(20))
    ]
    offsets_ms = learned(write(tmp_path, together, ('raw',)))
    first_ms = offsets_ms['CAM_FRONT']
    assert max(abs(ms - first_ms) for ms in offsets_ms.values()) <= TOLERANCE_MS
    assert abs(offsets_ms['CAM_BACK_LEFT'] - first_ms) < 1.0  # the usual one is 35 ms later
