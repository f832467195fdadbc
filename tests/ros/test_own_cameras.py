"""Cameras of any number and with any names, as a parameter file describes them."""

from pathlib import Path

from camera_rig import CameraRig, wait_until
from diagnostic_msgs.msg import DiagnosticStatus
from drive_client import Health, next_answer, values_of
from p2d_node.errors import ConfigError
from p2d_node.ros.drive_node import DriveNode
import pytest
from rclpy.parameter import Parameter
import yaml

EXAMPLE = Path(__file__).resolve().parents[2] / 'examples' / 'own_cameras.yaml'


@pytest.fixture
def drive_with_file(make_context, spin, tiny_checkpoint):
    """Starts a drive node with a parameter file."""
    nodes = []

    def start(path):
        overrides = {'model': str(tiny_checkpoint), 'max_new_tokens': 4, 'device': 'cpu'}
        node = DriveNode(
            context=make_context(),
            cli_args=['--ros-args', '--params-file', str(path)],
            parameter_overrides=[Parameter(name, value=v) for name, v in overrides.items()],
        )
        nodes.append(node)
        spin(node).start()
        return node

    yield start
    for node in nodes:
        node.stop_working()


def write_parameters(path, **parameters):
    path.write_text(yaml.safe_dump({'/**': {'ros__parameters': parameters}}))
    return path


def test_the_example_answers_about_four_cameras_without_a_warning(
    drive_with_file, node, watcher, capfd
):
    health = Health(node)
    parameters = yaml.safe_load(EXAMPLE.read_text())['/**']['ros__parameters']
    names = parameters['camera_names']
    topics = {name: f'/{name}/image_raw/compressed' for name in names}
    topics |= {name: camera['topic'] for name, camera in parameters['cameras'].items()}
    drive_with_file(EXAMPLE)
    rig = CameraRig(node, cameras=names, topics=topics, raw=('left', 'right'))
    wait_until(lambda: rig.heard)
    answer = next_answer(watcher, rig)
    assert list(answer.cameras) == names
    assert list(answer.tokens_kept) == [16, 8, 8, 4]  # of 81: 0.2, the default 0.1, 0.05
    assert answer.header.frame_id == 'front_optical'
    health.wait_for('front', DiagnosticStatus.OK)
    warnings = [line for line in capfd.readouterr().err.splitlines() if '[WARN]' in line]
    assert [line for line in warnings if 'the weights are random' not in line] == []


@pytest.mark.parametrize('count', [1, 2, 12])
def test_any_number_of_cameras_is_answered_about(drive_with_file, node, watcher, tmp_path, count):
    names = [f'camera_{number}' for number in range(count)]
    drive_with_file(write_parameters(tmp_path / 'mine.yaml', camera_names=names))
    rig = CameraRig(node, cameras=names, topics={n: f'/{n}/image_raw/compressed' for n in names})
    wait_until(lambda: rig.heard)
    answer = next_answer(watcher, rig)
    assert list(answer.cameras) == names
    assert answer.answer


@pytest.mark.parametrize(
    ('parameters', 'reason'),
    [
        ({'cameras': {'CAM_FORNT': {'topic': '/a'}}}, r'did you mean cameras\.CAM_FRONT\.topic\?'),
        (
            {'cameras': {'roof': {'topic': '/a'}}},
            r'cameras\.roof\.topic: there is no such parameter; .*must be in camera_names',
        ),
        ({'cameras': {'CAM_FRONT': {'topics': '/a'}}}, r'did you mean cameras\.CAM_FRONT\.topic'),
        ({'camera': {'CAM_FRONT': {'topic': '/a'}}}, r'did you mean cameras\.CAM_FRONT\.topic'),
        ({'camera_name': ['front']}, 'did you mean camera_names'),
        (
            {'retention_ratio': 0.5},
            r'retention_ratio: got 0\.5, but it is a group .*set retention_ratio\.CAM_BACK',
        ),
        ({'sync': 3}, r'sync: got 3, but it is a group of parameters; set sync\.deadline_ms'),
        (
            {'camera_names': ['a', 'b'], 'cameras': {n: {'topic': '/x'} for n in 'ab'}},
            r'cameras\.a\.topic, cameras\.b\.topic: got one topic for several cameras',
        ),
    ],
)
def test_a_parameter_that_looks_like_a_cameras_stops_the_start(
    drive_with_file, tmp_path, parameters, reason
):
    with pytest.raises(ConfigError, match=reason):
        drive_with_file(write_parameters(tmp_path / 'mine.yaml', **parameters))


@pytest.mark.parametrize(
    ('arguments', 'topics'),
    [
        (['-r', '__ns:=/car1'], {'a': '/car1/a/image', 'b': '/b/image'}),
        (
            ['-r', '__ns:=/car1', '-p', 'camera_namespace:=sensors/'],
            {'a': '/car1/sensors/a/image', 'b': '/b/image'},
        ),
        (['-p', 'camera_namespace:=/'], {'a': '/a/image', 'b': '/b/image'}),
        (
            ['-p', 'camera_namespace:=/rig', '-r', '/rig/a/image:=/b/image', '-r', '/b/image:=/c'],
            {'a': '/b/image', 'b': '/c'},
        ),
    ],
)
def test_relative_topics_are_below_the_camera_namespace_and_may_be_remapped(
    node, make_context, spin, tiny_checkpoint, arguments, topics
):
    health = Health(node)
    parameters = {
        'model': str(tiny_checkpoint),
        'camera_names': ['a', 'b'],
        'cameras.a.topic': 'a/image',
        'cameras.b.topic': '/b/image',
    }
    drive_node = DriveNode(
        context=make_context(),
        cli_args=['--ros-args', *arguments],
        parameter_overrides=[Parameter(name, value=v) for name, v in parameters.items()],
    )
    spin(drive_node).start()
    rig = CameraRig(node, cameras=topics, topics=topics)
    wait_until(lambda: rig.heard)
    prefix = drive_node.get_fully_qualified_name()
    for camera, topic in topics.items():
        status = wait_until(lambda name=f'{prefix}: {camera}': health.statuses.get(name))
        values = values_of(status)
        assert values['topic'] == topic
        configured = {'a': '/rig/a/image', 'b': '/b/image'}[camera]
        remapped = '/c' in topics.values()
        assert values.get('remapped from') == (configured if remapped else None)
        wait_until(
            lambda name=f'{prefix}: {camera}': (
                values_of(health.statuses[name])['publishers'] == '1'
            )
        )
    drive_node.stop_working()
