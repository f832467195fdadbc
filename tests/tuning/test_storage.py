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


@pytest.mark.parametrize('content', [b'a note\n', b'two\nnotes\n', b'{"a": 1}\n'])
def test_another_file_is_not_taken_for_a_journal(tmp_path, content):
    path = tmp_path / 'notes.txt'
    path.write_bytes(content)
    with pytest.raises(BackendUnavailableError, match=r'notes\.txt: .*: the file is not'):
        open_storage(str(path))
    assert path.read_bytes() == content


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
