import json

from p2d_node.durable_files import read_json_object, write_json
from p2d_node.errors import ConfigError, EngineMismatchError
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
    with pytest.raises(EngineMismatchError, match=r'has 109 bytes, allowed: 50$'):
        read_json_object(path, max_bytes=50, next_step='', error=EngineMismatchError)
    assert read_json_object(path, max_bytes=109) == {'a': 'x' * 100}
