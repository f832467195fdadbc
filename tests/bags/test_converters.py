"""Bags of the converters of nuScenes fit their presets, and become bags of p2d."""

from dataclasses import replace
from pathlib import Path
import re

from converter_bags import capture, K, open_ros2_bag, pixels_of, WRITERS
import numpy as np
from p2d_node.bags import ros_messages
from p2d_node.bags.camera_images import camera_of, IMAGE_TYPES, read_camera_messages
from p2d_node.bags.reading import BagReader
from p2d_node.bags.writing import write_bag
from p2d_node.camera_sync import SweepSynchronizer
from p2d_node.cli.main import EXIT_BAD_INPUT, main
from p2d_node.config import DriveConfig
from p2d_node.config_parameters import config_from_parameters
from p2d_node.errors import ConfigError
from p2d_node.records import CompressedImageLike
import pytest
from test_config_files import read_parameters

PRESETS = Path(__file__).resolve().parents[2] / 'config' / 'cameras'
TYPES = {'compressed': 'sensor_msgs/msg/CompressedImage', 'raw': 'sensor_msgs/msg/Image'}
NUM_SWEEPS = 16
LEARNING = 12
"""Sweeps by which the offsets of ros2_dataset_bridge are learned."""


def config_of(preset: str) -> DriveConfig:
    given = read_parameters(PRESETS / f'{preset}.yaml')
    return config_from_parameters(given.pop('camera_names'), given)


@pytest.fixture(scope='module', params=WRITERS)
def converted(request, tmp_path_factory):
    """Preset, images and bag of a converter."""
    images = capture(NUM_SWEEPS)
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, images, WRITERS[request.param](folder, images)


def test_the_bag_has_the_topics_of_its_preset(converted):
    preset, _, path = converted
    with BagReader(path) as bag:
        types = {f'/{topic.lstrip("/")}': kind for topic, kind in bag.topics.items()}
    for name, camera in config_of(preset).cameras.items():
        topic = f'/{camera.topic.lstrip("/")}'
        assert types[topic] == TYPES[camera.transport]
        assert camera_of(topic) == name


def test_the_synchroniser_finds_every_sweep_of_the_bag_with_its_preset(converted):
    preset, _, path = converted
    config = config_of(preset)
    offsets = {name: camera.exposure_offset_ms for name, camera in config.cameras.items()}
    now_ns = 0
    sync = SweepSynchronizer(offsets, config.sync, clock_ns=lambda: now_ns)
    counts, sets = dict.fromkeys(offsets, 0), []
    with BagReader(path) as bag:
        messages = zip(
            (m for m in bag.messages() if bag.topics[m.topic] in IMAGE_TYPES),
            read_camera_messages(bag, IMAGE_TYPES),
            strict=False,
        )
        for recorded, item in messages:
            now_ns = recorded.log_time_ns
            sets += filter(None, [sync.push(item.camera, item.stamp_ns, counts[item.camera])])
            sets += sync.poll()
            counts[item.camera] += 1
    numbers = [{frame.payload for frame in frame_set.frames.values()} for frame_set in sets]
    learned = LEARNING if config.sync.exposure_offsets == 'auto' else 0
    assert numbers == [{number} for number in range(learned, NUM_SWEEPS)]


def test_images_and_capture_stamps_are_those_of_the_data_set(converted):
    preset, images, path = converted
    with BagReader(path) as bag:
        found = list(read_camera_messages(bag, IMAGE_TYPES))
    assert len(found) == len(images)
    if preset == 'ros2_dataset_bridge':
        return  # its stamps are those of its publishing
    found.sort(key=lambda item: item.stamp_ns)
    for item, image in zip(found, images, strict=True):
        assert (item.camera, item.stamp_ns) == (image.camera, image.stamp_ns)
        if isinstance(item.message, CompressedImageLike):
            assert item.message.data.tobytes() == image.jpeg
        else:
            right = pixels_of(image)
            np.testing.assert_array_equal(item.message.data.reshape(right.shape), right)


@pytest.mark.parametrize('preset', ['foxglove', 'nuscenes_to_ros2bag'])
def test_make_bag_turns_another_bag_into_one_of_p2d(preset, tmp_path, capsys):
    images = capture(3)
    source = WRITERS[preset](tmp_path, images)
    out = tmp_path / 'out'
    assert main(['make-bag', '--from-mcap', str(source), '--out', str(out), '--json']) == 0
    assert '"images": 18' in capsys.readouterr().out
    with BagReader(out) as bag:
        assert set(bag.topics) == {
            f'/{image.camera}/{name}'
            for image in images
            for name in ('image_rect/compressed', 'camera_info')
        }
        assert [m.log_time_ns for m in bag.messages()][::2] == [i.stamp_ns for i in images]
    with BagReader(out) as bag:
        infos = list(read_camera_messages(bag, ('sensor_msgs/msg/CameraInfo',)))
    assert (infos[0].message.height, infos[0].message.width) == (90, 160)
    assert tuple(infos[0].message.k) == (K if preset == 'foxglove' else (0.0,) * 9)


def test_sources_that_make_bag_cannot_use_are_named(tmp_path, capsys):
    raw = WRITERS['nuscenes_to_ros2bag_chris7462'](tmp_path, capture(1))
    for source, reason in (
        (raw, '--from-mcap: .* got a raw image, allowed: JPEG; play the bag itself'),
        (tmp_path / 'nothing', "--from-mcap: got '.*nothing', which does not exist"),
    ):
        assert main(['make-bag', '--from-mcap', str(source), '--out', str(tmp_path / 'out')]) == 2
        assert re.search(reason, capsys.readouterr().err)
    assert not (tmp_path / 'out').exists()


@pytest.mark.attack(
    'a bag with images or calibrations whose stamps are no time',
    'one line that names topic and stamp, and no bag',
)
@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('stamp', [(-5, 0), (5, 4_294_967_295), (2**31 - 1, 1)])
@pytest.mark.parametrize('kind', ['compressed', 'camera_info'])
def test_a_stamp_that_is_no_time_is_named(tmp_path, capsys, kind, stamp, storage):
    bag, messages = open_ros2_bag(tmp_path)
    image = capture(1)[0]
    message = messages.compressed('x', image)
    if kind == 'camera_info':
        message = ros_messages.camera_info(message.header, 90, 160, np.array(K))
    message.header.stamp.sec, message.header.stamp.nanosec = stamp
    messages.write('/CAM_FRONT/x', message, image.stamp_ns)
    messages.writer.close()
    out = tmp_path / 'out'
    options = ['--from-mcap', str(bag), '--out', str(out), '--storage', storage]
    assert main(['make-bag', *options]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    sec, nanosec = stamp
    assert f"'/CAM_FRONT/x': got a stamp of {sec} s and {nanosec} ns, allowed: 0 to" in error
    assert error.count('\n') == 1
    assert not out.exists()


def test_two_image_topics_of_one_camera_are_refused(tmp_path):
    images = capture(1)
    both = [*images, replace(images[0], camera='detections/CAM_FRONT')]
    write_bag(both, tmp_path / 'bag')
    with (
        BagReader(tmp_path / 'bag') as bag,
        pytest.raises(ConfigError, match=r'^bag: .*: CAM_FRONT has the topics .* and .*, allowed'),
    ):
        list(read_camera_messages(bag, IMAGE_TYPES))
