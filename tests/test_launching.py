"""What the launch files check before they start anything."""

from p2d_node.cli.parameter_file import camera_names_in
from p2d_node.errors import ConfigError, P2dError
from p2d_node.ros.launching import check_argument_names, check_exit, full_node_name
import pytest

KNOWN = ['model', 'namespace', 'respawn']
LAUNCH = ['ros2', 'launch', 'p2d_node', 'drive.launch.py']


@pytest.mark.parametrize(
    ('given', 'reason'),
    [
        ('modle:=x', "'modle': there is no such launch argument; did you mean model"),
        ('use_gpu:=true', 'allowed: model, namespace, respawn'),
    ],
)
def test_a_launch_argument_that_does_not_exist_is_refused(tmp_path, given, reason):
    path = tmp_path / 'drive.launch.py'
    for command in (LAUNCH, ['ros2', 'launch', str(path)]):
        with pytest.raises(ConfigError, match=reason):
            check_argument_names(['model:=a', given], KNOWN, str(path), [*command, given])


def test_arguments_of_an_including_launch_file_and_of_ros2_launch_pass(tmp_path):
    ours = str(tmp_path / 'p2d_node' / 'drive.launch.py')
    for command in (
        ['ros2', 'launch', 'car', 'bringup.launch.py'],
        ['ros2', 'launch', 'car', 'drive.launch.py'],
        ['ros2', 'launch', str(tmp_path / 'car' / 'drive.launch.py')],
    ):
        check_argument_names(['lidar:=on'], KNOWN, ours, [*command, 'lidar:=on'])
    check_argument_names(['launch-prefix:=gdb'], KNOWN, ours, LAUNCH)


def test_only_a_process_that_failed_ends_the_launch():
    for code in (0, -2, -15):
        check_exit('node /p2d', code, is_shutdown=False)
    check_exit('node /p2d', 1, is_shutdown=True)
    with pytest.raises(P2dError, match='node /p2d ended with exit code 2; its message above says'):
        check_exit('node /p2d', 2, is_shutdown=False)


@pytest.mark.parametrize(
    ('pushed', 'namespace', 'full_name'),
    [
        ('', '', '/p2d'),
        ('', 'car1', '/car1/p2d'),
        ('/fleet', 'car1/', '/fleet/car1/p2d'),
        ('fleet', '', '/fleet/p2d'),
        ('/fleet', '/car1', '/car1/p2d'),
    ],
)
def test_the_full_name_of_the_node_follows_the_namespaces(pushed, namespace, full_name):
    assert full_node_name(pushed, namespace, 'p2d') == full_name


@pytest.mark.parametrize(
    ('section', 'node', 'applies'),
    [
        ('p2d', '/p2d', True),
        ('/car1/p2d', '/car1/p2d', True),
        ('/**', '/car1/p2d', True),
        ('/**/p2d', '/car1/p2d', True),
        ('/*/p2d', '/car1/p2d', True),
        ('/*', '/car1/p2d', False),
        ('p2d', '/car1/p2d', False),
        ('/car1/p2d', '/car2/p2d', False),
        ('/**/p2d/**', '/car1/p2d', True),
        ('/**/*/**', '/car1/p2d', True),
        ('/*/*/*/**', '/car1/p2d', False),
    ],
)
def test_a_parameter_file_needs_a_section_of_the_node(tmp_path, section, node, applies):
    path = tmp_path / 'params.yaml'
    path.write_text(f'{section}:\n  ros__parameters:\n    camera_names: [roof]\n')
    if applies:
        assert camera_names_in(path, node) == ['roof']
        return
    with pytest.raises(ConfigError, match=rf'needed: a section of {node} or /\*\*'):
        camera_names_in(path, node)


@pytest.mark.attack(
    'a parameter file whose section has many wildcards: a regular expression takes hours',
    'refused above two ** or 256 characters; others are matched name by name, in one pass',
)
@pytest.mark.timeout(20)
def test_a_section_of_many_wildcards_takes_no_time(tmp_path):
    path, node = tmp_path / 'params.yaml', '/a' * 40 + '/p2d'
    for wildcards in ('/**' * 100, '/**/*' * 20, '/**/a' * 20, '/**' + '/*' * 60 + '/**'):
        path.write_text(f'{wildcards}/x:\n  ros__parameters:\n    camera_names: [roof]\n')
        with pytest.raises(ConfigError, match=r'needed: a section of|got the section|got a name'):
            camera_names_in(path, node)
