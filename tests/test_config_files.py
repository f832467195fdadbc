"""The parameter files that ship agree with the configuration classes."""

from pathlib import Path
import re
from xml.etree import ElementTree

from p2d_node import data_folders, retention_presets
from p2d_node.checkpoints.importing import alpamayo
from p2d_node.cli.parameter_file import read_drive_config
from p2d_node.config import DriveConfig, NUSCENES_EXPOSURE_OFFSETS_MS
from p2d_node.config_parameters import config_from_parameters, list_parameters
from p2d_node.errors import ConfigError
from p2d_node.records import NUSCENES_CAMERAS
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'config'
RIGS = {'physical_ai': tuple(n for n in alpamayo.CAMERA_NAMES if n.startswith('camera_'))}
"""Name of a preset to its cameras, where they are not those of nuScenes."""


def read_parameters(path: Path) -> dict[str, object]:
    def flatten(tree, prefix=''):
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from flatten(value, f'{prefix}{name}.')
            else:
                yield f'{prefix}{name}', value

    return dict(flatten(yaml.safe_load(path.read_text())['/**']['ros__parameters']))


def test_drive_yaml_shows_the_defaults():
    given = read_parameters(CONFIG / 'drive.yaml')
    right = DriveConfig(retention_ratio=dict.fromkeys(NUSCENES_CAMERAS, 0.1))
    assert config_from_parameters(NUSCENES_CAMERAS, given) == right
    parameters = {p.name for p in list_parameters(NUSCENES_CAMERAS)}
    unnamed = {n for n in parameters if not n.startswith(('cameras.', 'retention_ratio.'))}
    empty = {'camera_namespace', 'context', 'encoder.engine_dir', 'hardware_id', 'stop'}
    empty.add('sync.reference_camera')
    assert unnamed - set(given) == empty


def test_ratios_tuned_for_a_model_are_its_defaults(monkeypatch, tmp_path):
    folder = tmp_path / 'config' / 'retention'
    folder.mkdir(parents=True)
    preset = folder / 'my-model.yaml'
    preset.write_text('/**: {ros__parameters: {retention_ratio: {CAM_FRONT: 0.2}}}')
    monkeypatch.setattr(data_folders, 'PACKAGE', tmp_path / 'src' / 'p2d_node')
    config = read_drive_config(None, model='/models/my-model')
    assert config.retention_ratio['CAM_FRONT'] == 0.2
    assert config.retention_ratio['CAM_BACK'] == 0.1
    assert read_drive_config(None, model='other').retention_ratio['CAM_FRONT'] == 0.1
    mine = tmp_path / 'mine.yaml'
    mine.write_text('/**: {ros__parameters: {model: my-model, retention_ratio: {CAM_FRONT: 0.3}}}')
    assert read_drive_config(mine).retention_ratio['CAM_FRONT'] == 0.3
    for broken in ('', '/**: 3', '/**: {ros__parameters: {retention_ratio: {CAM_BACK: much}}}'):
        preset.write_text(broken)
        with pytest.raises(ConfigError, match=r'my-model\.yaml: not a file of retention ratios'):
            read_drive_config(None, model='my-model')


def test_a_model_is_known_by_its_folder_however_it_is_named(monkeypatch, tmp_path):
    presets = tmp_path / 'config' / 'retention'
    monkeypatch.setattr(data_folders, 'PACKAGE', tmp_path / 'src' / 'p2d_node')
    model = tmp_path / 'my-model'
    model.mkdir()
    monkeypatch.chdir(model)
    names = ('.', '..//my-model/', './', str(model), '../my-model/../my-model')
    for name in names:
        assert retention_presets.preset_name(name) == 'my-model'
        assert retention_presets.writable_preset(name) is None
    presets.mkdir(parents=True)
    for name in names:
        assert retention_presets.writable_preset(name) == presets / 'my-model.yaml'
        assert retention_presets.find_preset(name) is None
    (presets / 'my-model.yaml').touch()
    for name in names:
        assert retention_presets.find_preset(name) == presets / 'my-model.yaml'


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ('p2d:\n  ros__parameters: {model: [a\n', r"line 3: .*expected ',' or ']'"),
        ('p2d:\n\tmodel: a\n', 'line 2: found character'),
        ('p2d: "a\n', 'line 2: found unexpected end of stream'),
        ('p2d: \x07\n', 'unacceptable character'),
        ('[' * 100_000, 'line 1: got lists or groups nested 33 deep, allowed: 32'),
        ('#' + ' ' * (1 << 20), r'cannot be read: got 1048577 bytes, allowed: at most 1048576'),
        (
            f'p2d: {{ros__parameters: {{max_image_pixels: 0x{"f" * 9000}}}}}\n',
            'line 1: got a number of 9002 characters',
        ),
        ('p2d: &a\n  ros__parameters: *a\n', r'an alias \(\*\), allowed: plain values'),
        ('p2d: {ros__parameters: {model: a}}\n---\np2d: 5\n', '2 YAML documents, allowed: one'),
        (
            'p2d:\n  ros__parameters:\n    model: a\n    model: b\n',
            'model: set in line 3 and in line 4',
        ),
        ('p2d: {}\np2d: {}\n', 'p2d: set in line 1 and in line 2'),
        (
            'p2d: {ros__parameters: {questions: [[a]]}}\n',
            'questions: got a list or a group',
        ),
        ('p2d: {ros__parameters: {autostart: 7}}\n', 'autostart: got 7, allowed: true, false'),
        ('p2d: {ros__parameters: {sync: [1, 2]}}\n', 'it is a group of parameters; set sync.dead'),
        (
            'lidar: {ros__parameters: {a: 1}}\nradar: {ros__parameters: {a: 1}}\n',
            'got parameters of /lidar, /radar, needed: a section of p2d',
        ),
        ('p2d: 5\n', 'has no ros__parameters'),
    ],
)
def test_a_file_that_is_no_parameter_file_is_refused_in_one_line(tmp_path, content, reason):
    path = tmp_path / 'drive.yaml'
    path.write_text(content)
    with pytest.raises(ConfigError, match=rf'drive\.yaml.*{reason}') as caught:
        read_drive_config(path)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('node', ['/**', 'p2d', '/car/p2d', 'vlm'])
def test_the_section_of_the_drive_node_is_read(tmp_path, node):
    path = tmp_path / 'drive.yaml'
    others = {} if node == 'vlm' else {'other': {'ros__parameters': {'model': '/models/other'}}}
    path.write_text(yaml.safe_dump({node: {'ros__parameters': {'max_new_tokens': 7}}} | others))
    assert read_drive_config(path).max_new_tokens == 7
    path.write_text(yaml.safe_dump({'car': {node: {'ros__parameters': {'prune_layer': 1}}}}))
    assert read_drive_config(path).prune_layer == 1


@pytest.mark.parametrize('path', sorted((CONFIG / 'cameras').glob('*.yaml')), ids=lambda p: p.stem)
def test_every_camera_preset_is_a_configuration_of_all_cameras_of_its_rig(path):
    given = read_parameters(path)
    config = config_from_parameters(given.pop('camera_names'), given)
    cameras = RIGS.get(path.stem, NUSCENES_CAMERAS)
    assert tuple(config.cameras) == cameras
    topics = [camera.topic for camera in config.cameras.values()]
    assert len(set(topics)) == len(cameras)
    offsets = {name: camera.exposure_offset_ms for name, camera in config.cameras.items()}
    triggered = dict.fromkeys(cameras, 0.0)
    assert offsets in (NUSCENES_EXPOSURE_OFFSETS_MS, triggered)


@pytest.mark.parametrize('name', ['fastdds.xml', 'cyclonedds.xml'])
def test_transport_profiles_are_well_formed(name):
    assert ElementTree.parse(CONFIG / name).getroot().tag.rpartition('}')[2].lower() in (
        'dds',
        'cyclonedds',
    )


@pytest.mark.parametrize(
    ('values', 'reason'),
    [
        ({'retention': 0.5}, r'retention: there is no such parameter'),
        ({'sync.tolerance': 5.0}, r'did you mean sync\.tolerance_ms\?'),
        ({'max_new_tokens': 1.5}, r'max_new_tokens: got 1\.5, allowed: a whole number'),
        ({'deadline_ms': True}, r'deadline_ms: got True, allowed: a number'),
        ({'questions': 'What?'}, r"questions: got 'What\?', allowed: a list of texts"),
        ({'cameras.CAM_BACK.transport': 'h264'}, r"transport: got 'h264', allowed: raw"),
    ],
)
def test_parameters_that_do_not_fit_are_named(values, reason):
    with pytest.raises(ConfigError, match=reason):
        config_from_parameters(NUSCENES_CAMERAS, values)


@pytest.mark.parametrize('names', [[], [0, 1], ['a', 'a'], [''], ['a.b'], 'CAM_FRONT', None])
def test_camera_names_that_are_not_different_names_are_refused(names):
    with pytest.raises(ConfigError, match=r'camera_names: got .*, allowed: a list of 1 to 64 '):
        config_from_parameters(names, {})


@pytest.mark.attack(
    'A parameter file with 15,000 cameras, each of which is compared with every parameter',
    'refused above 64 cameras',
)
@pytest.mark.timeout(20)
def test_cameras_have_a_limit():
    with pytest.raises(ConfigError, match=r'camera_names: got .*, allowed: a list of 1 to 64 d'):
        config_from_parameters([f'c{number}' for number in range(15_000)], {})
    config = config_from_parameters([f'c{number}' for number in range(64)], {})
    assert len(config.cameras) == 64


@pytest.mark.parametrize('name', ['encoder.engine_dir', 'model', 'stop', 'cameras.CAM_BACK.topic'])
def test_a_text_with_the_character_0_is_refused(name):
    value = ['a', '\0'] if name == 'stop' else '\0'
    with pytest.raises(ConfigError, match=r"got '\\x00', allowed: a text without the character 0"):
        config_from_parameters(NUSCENES_CAMERAS, {name: value})
    with pytest.raises(ConfigError, match='different names without dots'):
        config_from_parameters(['a\0'], {})


@pytest.mark.attack(
    'A parameter holds 100,000 texts, or texts of megabytes',
    'refused with the number and length allowed',
)
@pytest.mark.parametrize(
    ('name', 'texts', 'allowed'),
    [
        ('questions', ['Is there a car?'] * 10_000, '256 texts of 64000'),
        ('questions', ['x' * 10_000_000], '256 texts of 64000'),
        ('stop', ['.'] * 100_000, '16 texts of 1024'),
        ('stop', ['x' * 10_000_000], '16 texts of 1024'),
    ],
)
def test_lists_of_texts_are_bounded_in_number_and_length(name, texts, allowed):
    with pytest.raises(ConfigError, match=f'^{name}: got .*, allowed: up to {allowed} ') as caught:
        config_from_parameters(NUSCENES_CAMERAS, {name: texts})
    assert len(str(caught.value)) < 200


@pytest.mark.attack(
    'A peer sets a text of megabytes a thousand times, and reads /parameter_events without end',
    'refused above 4,096 characters: ROS keeps no more than these for the peer',
)
@pytest.mark.parametrize(
    'name', ['model', 'encoder.engine_dir', 'hardware_id', 'context', 'camera_namespace']
)
def test_single_texts_are_bounded(name):
    config_from_parameters(NUSCENES_CAMERAS, {name: 'x' * 250})
    with pytest.raises(ConfigError, match=f'^{name}: got a text of 4097 .*, allowed: up to 4096'):
        config_from_parameters(NUSCENES_CAMERAS, {name: 'x' * 4097})


def test_whole_numbers_pass_as_floats():
    config = config_from_parameters(NUSCENES_CAMERAS, {'retention_ratio.CAM_BACK': 1})
    assert config.retention_ratio['CAM_BACK'] == 1.0


@pytest.mark.parametrize(
    ('distro', 'discovery', 'variables'),
    [
        ('kilted', 'localhost', {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}),
        ('kilted', 'subnet', {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SUBNET'}),
        ('humble', 'localhost', {'ROS_LOCALHOST_ONLY': '1'}),
        ('humble', 'subnet', {'ROS_LOCALHOST_ONLY': '0'}),
        ('kilted', '', {}),
    ],
)
def test_discovery_is_set_with_the_variable_of_the_distribution(
    monkeypatch, distro, discovery, variables
):
    monkeypatch.setenv('ROS_DISTRO', distro)
    dds_profile = pytest.importorskip('p2d_node.ros.dds_profile', reason='ROS is not installed')
    assert dds_profile.discovery_environment(discovery) == variables


def groups_in(path: Path, status: str) -> list[str]:
    """Return where the analyzers of diagnostic_aggregator show a status."""
    given = yaml.safe_load(path.read_text())['/**']['ros__parameters']
    groups = [group for group in given.values() if isinstance(group, dict)]
    assert all(group['type'] == 'diagnostic_aggregator/AnalyzerGroup' for group in groups)
    return [
        f'{group["path"]}/{analyzer["path"]}'
        for group in groups
        for analyzer in group['analyzers'].values()
        if any(re.fullmatch(pattern, status) for pattern in analyzer['regex'])
    ]


@pytest.mark.parametrize(
    ('file', 'node', 'group'),
    [
        ('config/diagnostics_aggregator.yaml', '/p2d', 'Vehicle'),
        ('config/diagnostics_aggregator.yaml', '/car1/p2d', 'Vehicle'),
        ('examples/two_vehicles_diagnostics.yaml', '/car1/p2d', 'Car 1'),
        ('examples/two_vehicles_diagnostics.yaml', '/car2/p2d', 'Car 2'),
    ],
)
def test_the_aggregator_sorts_every_status_of_a_drive_node_into_one_group(file, node, group):
    path = ROOT / file
    for component in ('pipeline', 'synchroniser'):
        assert groups_in(path, f'{node}: {component}') == [f'{group}/Answers']
    for camera in (*NUSCENES_CAMERAS, 'pipeline_cam'):
        assert groups_in(path, f'{node}: {camera}') == [f'{group}/Cameras']
    assert groups_in(path, '/lidar: pipeline') == []
