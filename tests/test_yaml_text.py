import time

from p2d_node.cli.parameter_file import read_drive_config
from p2d_node.errors import ConfigError
from p2d_node.parameter_yaml import check_parameter_yaml
from p2d_node.retention_presets import tuned_ratios
from p2d_node.ros.parameter_sources import check_parameter_sources
from p2d_node.yaml_text import MAX_DEPTH, parse_yaml
import pytest

LAUGHS = 'a0: &a0 [x, x]\n' + ''.join(
    f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 9)}]\n' for n in range(1, 30)
)
MERGES = 'a0: &a0 {x: 1, y: 2}\n' + ''.join(
    f'a{n}: &a{n} {{<<: [{", ".join([f"*a{n - 1}"] * 9)}]}}\n' for n in range(1, 30)
)
"""Merging copies: a parser needs 9 to the power of 29 steps."""

LONG_KEY = f'? {"k" * 300_000}\n: {{a: 1, b: 2}}\n'
READERS = (
    read_drive_config,
    lambda path: check_parameter_sources(['drive', '--ros-args', '--params-file', str(path)]),
)
"""Of a parameter file, in p2d and in the node."""


@pytest.mark.attack(
    'YAML of a kilobyte whose aliases stand for more than any memory holds',
    'refused with the line of the first alias, in parameter files, presets and bags',
)
@pytest.mark.parametrize('text', [LAUGHS, MERGES, 'a: &a [*a]', 'a: &a {b: *a}'])
def test_aliases_are_refused(text):
    with pytest.raises(ValueError, match=r'^line \d: got an alias \(\*\), allowed: plain values'):
        parse_yaml(text)
    with pytest.raises(ConfigError, match=r'^stop: line \d: got an alias'):
        check_parameter_yaml(text, 'stop')


@pytest.mark.attack(
    'A section of a parameter file is named by many wildcards, or by a regular expression',
    'refused before rclpy compares it with the name of the node, which could take hours',
)
@pytest.mark.parametrize('name', ['/**' * 3, '/(a+)+b', '/***', ''])
def test_a_section_is_named_as_a_node_is(name):
    text = '"{}": {{ros__parameters: {{stop: 1}}}}'
    with pytest.raises(ConfigError, match=r'^a.yaml: got the section .*, allowed: the name of a'):
        check_parameter_yaml(text.format(name), 'a.yaml')
    for usual in ('/**', '/*/p2d', '/fleet/car_1/p2d', 'p2d', '/**/p2d'):
        check_parameter_yaml(text.format(usual), 'a.yaml')
    check_parameter_yaml('/fleet: {car_1: {p2d: {ros__parameters: {stop: 1}}}}', 'a.yaml')


@pytest.mark.attack(
    'a parameter file of 1 MiB with a name of megabytes, or long names of groups, of thousands of '
    'values; perhaps with an error at its end',
    'refused by p2d and the node: a name has up to 256 characters with those of its groups',
)
@pytest.mark.parametrize(
    ('text', 'got'),
    [
        (LONG_KEY, 'a name of 300000 characters'),
        ('/**/' + 'a/' * 200 + ': {ros__parameters: {stop: 1}}', 'a name of 404 characters'),
        (f'{"a" * 127}: {{{"b" * 127}: {{c: 1}}}}', 'a name of 257 characters'),
        ('? [a, b]\n: 1\n', 'a list or group as a name'),
        ('? {a: {b: 1}}\n: 1\n', 'a list or group as a name'),
    ],
    ids=['key', 'section', 'joined', 'list', 'group'],
)
def test_a_name_has_a_limit_with_those_of_its_groups(tmp_path, text, got):
    path = tmp_path / 'drive.yaml'
    path.write_text(text)
    match = f'drive.yaml: line 1: got {got}, allowed: a text of up to 256 characters'
    for read in READERS:
        with pytest.raises(ConfigError, match=match):
            read(path)
    check_parameter_yaml(f'{"a" * 127}: {{{"b" * 127}: 1}}', 'a.yaml')


@pytest.mark.attack(
    'such a parameter file with an error at its end, up to which ROS reads all values',
    'a file that is not YAML is refused before ROS reads it',
)
@pytest.mark.parametrize(
    ('end', 'reason'),
    [('\t[', 'found character'), ('x: &a 1\ny: &a 1\n', 'second occurrence')],
)
def test_an_error_at_the_end_of_a_file_hides_nothing(tmp_path, end, reason):
    path = tmp_path / 'drive.yaml'
    path.write_text(LONG_KEY + end)
    for read in READERS:
        with pytest.raises(ConfigError, match=rf'drive.yaml: not YAML: (line \d: )?{reason}'):
            read(path)


@pytest.mark.attack(
    'YAML nested thousands deep, which parsers read in quadratic time and recursion',
    'refused at 32 levels',
)
@pytest.mark.parametrize('opening', ['[', '{a: ', '- ', '? '])
def test_deep_nesting_is_refused_at_once(opening):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r'^line 1: got lists or groups nested 33 deep'):
        parse_yaml(opening * 200_000)
    assert time.monotonic() - start < 2.0
    nested = '[' * MAX_DEPTH + ']' * MAX_DEPTH
    assert parse_yaml(nested) is not None


@pytest.mark.parametrize(
    'number', ['0x' + 'f' * 9000, '9' * 9000, '1' + ':59' * 9000, '0b' + '1' * 9000]
)
def test_a_number_of_thousands_of_digits_is_refused(number):
    with pytest.raises(ValueError, match=r'^line 1: got a number of \d{4,} characters, allowed'):
        parse_yaml(f'a: {number}')
    assert parse_yaml('a: [9223372036854775807, -9223372036854775808, 0xff]') == {
        'a': [2**63 - 1, -(2**63), 255]
    }


def test_a_text_that_is_too_large_is_not_parsed():
    with pytest.raises(ValueError, match=r'^got 1048577 bytes of YAML, allowed: at most 1048576'):
        parse_yaml(b'#' * ((1 << 20) + 1))


@pytest.mark.parametrize('text', [LAUGHS, '[' * 100_000, f'a: 0x{"f" * 9000}'])
def test_a_preset_that_is_a_bomb_is_one_line(tmp_path, monkeypatch, text):
    (tmp_path / 'config' / 'retention').mkdir(parents=True)
    (tmp_path / 'config' / 'retention' / 'large.yaml').write_text(text)
    monkeypatch.setattr('p2d_node.data_folders.PACKAGE', tmp_path / 'src' / 'p2d_node')
    with pytest.raises(ConfigError, match=r'large\.yaml: not a file of retention ratios: Value'):
        tuned_ratios('large')
