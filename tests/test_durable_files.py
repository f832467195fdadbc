import json
import os
from pathlib import Path

from memory import peak_growth_bytes
from p2d_node.durable_files import (
    MAX_DATA_BYTES,
    read_data,
    read_file,
    read_json,
    read_json_object,
    write_json,
)
from p2d_node.errors import ConfigError, EngineMismatchError, format_faults, quote
import pytest


def test_an_object_is_read_as_it_was_written(tmp_path):
    content = {'name': 'ö', 'values': [1, 2.5, None]}
    write_json(tmp_path / 'a.json', content)
    assert read_json_object(tmp_path / 'a.json') == content


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (None, 'is missing'),
        (b'{', 'is not valid JSON: '),
        (b'', 'is not valid JSON: '),
        (b'\xff', 'is not valid JSON: '),
        (b'[' * 100_000, 'is not valid JSON: '),
        (b'{"a": ' * 100_000, 'is not valid JSON: '),
        (b'9' * 5000, 'is not valid JSON: Exceeds the limit'),
        (b'[]', 'is not a JSON object: got a list'),
        (b'3', 'is not a JSON object: got a int'),
    ],
)
def test_a_file_that_holds_no_object_is_one_clear_line(tmp_path, content, reason):
    path = tmp_path / 'a.json'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_json_object(path, parameter='model', next_step='copy the checkpoint again')
    message = str(caught.value)
    assert message.startswith(f'model: {path} {reason}')
    assert message.endswith('; copy the checkpoint again')
    assert len(message.splitlines()) == 1


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f'{tmp_path} cannot be read: Is a directory; copy it'):
        read_json_object(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps({'a': 'x' * 100}))
    with pytest.raises(EngineMismatchError, match=r'got 109 bytes, allowed: at most 50$'):
        read_json_object(path, max_bytes=50, next_step='', error=EngineMismatchError)
    assert read_json_object(path, max_bytes=109) == {'a': 'x' * 100}


@pytest.mark.attack(
    'a JSON file of a terabyte that takes no room on the disk (a sparse file)',
    'refused by its size; every kind of file has a largest one',
)
def test_a_sparse_file_is_refused_by_its_size(tmp_path):
    path = tmp_path / 'questions.json'
    with path.open('wb') as file:
        file.truncate(1 << 40)

    def refuse():
        with pytest.raises(ConfigError, match=r'^data: .*: got 1099511627776 bytes, allowed: at'):
            read_data(path, parameter='data', next_step='name the file of questions')

    assert peak_growth_bytes(refuse) < 10 << 20


def test_a_device_without_an_end_is_read_up_to_the_limit():
    with pytest.raises(OSError, match='got more than 1000 bytes, allowed: at most 1000'):
        read_file(Path('/dev/zero'), 1000)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.attack(
    'JSON values that Python reads but cannot write: nested a thousand deep, or of many digits',
    'one line that names the kind of the value in place of the value',
)
@pytest.mark.parametrize('value', [nested(5000), 16**9000, [16**9000]], ids=['deep', 'long', 'in'])
def test_a_value_that_cannot_be_shown_is_named_by_its_kind(value):
    assert quote(value) == f'a {type(value).__name__} that is too large to show'


def test_numbers_that_no_float_can_hold_are_a_fault_of_the_file(tmp_path):
    with (
        pytest.raises(ConfigError, match='not JSON data: OverflowError: '),
        format_faults(tmp_path, 'JSON data', 'copy it again'),
    ):
        float(json.loads('9' * 400))


def test_a_pipe_is_refused_without_a_wait(tmp_path):
    os.mkfifo(tmp_path / 'settings.json')
    with pytest.raises(ConfigError, match='cannot be read: got a pipe, allowed: a file'):
        read_json(tmp_path / 'settings.json')


@pytest.mark.attack(
    'a JSON file of a few megabytes that Python makes gigabytes of: millions of empty lists',
    'refused by the number of its values, before it is parsed',
)
@pytest.mark.parametrize('piece', ['[],', '{},', '0,'])
def test_many_small_values_are_refused_before_they_are_made(tmp_path, piece):
    path = tmp_path / 'data.json'
    path.write_text(f'[{piece * 9_000_000}0]')
    with pytest.raises(ConfigError, match='allowed: up to'):
        read_json(path, max_bytes=MAX_DATA_BYTES)


@pytest.mark.attack(
    'a JSON file of which every byte becomes 17 in memory: objects of one number, one wide letter',
    'refused by the number of its values for its size; a text is not copied',
)
def test_a_json_file_does_not_take_many_times_its_size(tmp_path):
    path = tmp_path / 'data.json'
    path.write_text('[' + '{"a":1},' * 2_000_000 + '0]')
    with pytest.raises(ConfigError, match='got 2000001 lists and objects, allowed: up to 1048576'):
        read_json(path, max_bytes=MAX_DATA_BYTES)
    path.write_text('"🚗' + 'x' * (32 << 20) + '"')
    assert peak_growth_bytes(lambda: read_json(path, max_bytes=MAX_DATA_BYTES)) < 10 * (32 << 20)
