"""Storages that are damaged, out of reach, or opened by many at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import optuna
from p2d_node.errors import BackendUnavailableError
from p2d_node.tuning.storage import mask_password, open_storage, storage_errors
import pytest


def test_a_journal_whose_last_line_was_cut_is_read_and_written_again(tmp_path):
    path = tmp_path / 'study.journal'
    study = optuna.create_study(study_name='s', storage=open_storage(str(path)))
    study.add_trial(optuna.trial.create_trial(value=1.0))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"worker_id":"x","stu')
    again = optuna.load_study(study_name='s', storage=open_storage(str(path)))
    assert path.read_bytes() == whole
    again.add_trial(optuna.trial.create_trial(value=2.0))
    last = optuna.load_study(study_name='s', storage=open_storage(str(path)))
    assert [trial.value for trial in last.trials] == [1.0, 2.0]


def test_a_database_that_many_create_at_once_is_created(tmp_path):
    url = f'sqlite:///{tmp_path}/study.db'

    def join(_):
        return optuna.create_study(
            study_name='s', storage=open_storage(url), load_if_exists=True
        )._study_id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(join, range(8)))) == 1


@pytest.mark.parametrize('content', [b'', b'{"op_c', b'{"op_code":0,"worker_id":"x","stu'])
def test_a_journal_that_was_cut_in_its_first_line_is_begun_anew(tmp_path, content):
    path = tmp_path / 'study.journal'
    path.write_bytes(content)
    assert open_storage(str(path)).get_all_studies() == []
    assert path.read_bytes() == b''


@pytest.mark.parametrize(
    'content',
    [b'a note\n', b'two\nnotes\n', b'{"a": 1}\n', b'a note', b'{"a": 1}', b'{"op_code"=0', b'['],
)
def test_another_file_is_not_taken_for_a_journal(tmp_path, content):
    path = tmp_path / 'notes.txt'
    path.write_bytes(content)
    with pytest.raises(BackendUnavailableError, match=r'notes\.txt: .*: the file is not'):
        open_storage(str(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    'line', ['{"op_code":99}', '{"op_code":0}', '{"op_code":99,"worker_id":"x"}', '5', 'no\nJSON']
)
def test_a_journal_with_a_line_that_means_nothing_is_one_line(tmp_path, line):
    path = tmp_path / 'study.journal'
    optuna.create_study(study_name='s', storage=open_storage(str(path)))
    content = path.read_text() + f'{line}\n'
    path.write_text(content)
    with pytest.raises(
        BackendUnavailableError, match=r'study\.journal: cannot be used: '
    ) as caught:
        open_storage(str(path))
    assert '\n' not in str(caught.value)
    assert path.read_text() == content


def test_another_file_is_not_taken_for_a_database(tmp_path):
    (tmp_path / 'notes.txt').write_text('nothing of the kind ' * 100)
    with pytest.raises(BackendUnavailableError, match='file is not a database'):
        open_storage(f'sqlite:///{tmp_path}/notes.txt')


def test_a_storage_that_goes_away_is_one_line_without_its_password():
    url = 'postgresql://me:secret@host/db'
    with (
        pytest.raises(BackendUnavailableError) as caught,
        storage_errors(url),
    ):
        raise OSError(f'lost {url}\nand more')
    assert str(caught.value).startswith('--storage postgresql://me:***@host/db: cannot be used')
    assert 'secret' not in str(caught.value)
    assert '\n' not in str(caught.value)
    assert mask_password('sqlite:///a@b:c.db') == 'sqlite:///a@b:c.db'


@pytest.mark.parametrize(
    'url',
    [
        'postgresql://127.0.0.1:1/d?user=me&password=SECRET',
        'postgresql://127.0.0.1:1/d?password=hid@SECRET&user=me',
        'postgresql://me:hid@SECRET@127.0.0.1:1/d',
        'postgresql://me:h@SECRET@SECRET2@127.0.0.1:1/d',
        'postgresql://me:hid/SECRET@127.0.0.1:1/d',
        'nonsense://me:SECRET@127.0.0.1:1/d',
    ],
)
def test_no_part_of_a_password_is_shown(url):
    with pytest.raises(BackendUnavailableError) as caught:
        open_storage(url)
    assert 'SECRET' not in str(caught.value)
    assert '***' in str(caught.value)


def test_what_a_database_took_for_its_host_is_not_shown():
    url = 'postgresql://me:p@ss@127.0.0.1:1/d'
    with pytest.raises(BackendUnavailableError) as caught, storage_errors(url):
        raise OSError("failed to resolve host 'ss@127.0.0.1'")
    assert str(caught.value).startswith(
        '--storage postgresql://me:***@127.0.0.1:1/d: cannot be used: failed to resolve host '
        "'***@127.0.0.1'"
    )
