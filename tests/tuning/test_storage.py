"""Databases that are damaged, out of reach, or opened by many workers at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
import sqlite3

import optuna
from optuna.exceptions import StorageInternalError
from p2d_node.errors import BackendUnavailableError
from p2d_node.tuning.storage import open_storage, storage_errors
import pytest

GRACE_PERIOD_S = 60.0


def test_a_path_is_an_sqlite_file(tmp_path):
    path = tmp_path / 'new' / 'study.db'
    study = optuna.create_study(study_name='s', storage=open_storage(str(path), GRACE_PERIOD_S))
    study.add_trial(optuna.trial.create_trial(value=1.0))
    again = open_storage(f'sqlite:///{path}', GRACE_PERIOD_S)
    assert [t.value for t in optuna.load_study(study_name='s', storage=again).trials] == [1.0]


@pytest.mark.parametrize('version', ['v2.6.0.a', 'v9.0.0.a'])
def test_tables_of_another_optuna_are_one_line_with_the_next_step(tmp_path, version):
    path = tmp_path / 'study$(touch x).db'
    open_storage(str(path), GRACE_PERIOD_S)
    with sqlite3.connect(path) as connection:
        connection.execute('update alembic_version set version_num=?', (version,))
    connection.close()
    with pytest.raises(
        BackendUnavailableError, match='run: optuna storage upgrade --storage URL; or'
    ) as caught:
        open_storage(str(path), GRACE_PERIOD_S)
    assert '\n' not in str(caught.value)


@pytest.mark.attack(
    'a study whose name has a ?, beside another database with the name before it',
    'refused: what follows would be options, and the search would go into the other database',
)
def test_a_path_with_options_is_refused(tmp_path):
    other = tmp_path / 'notes.db'
    with closing(sqlite3.connect(other)) as database:
        database.execute('CREATE TABLE notes (text)')
    before = other.read_bytes()
    with pytest.raises(BackendUnavailableError, match=r'storage: got .*, allowed: a path without'):
        open_storage(f'{other}?v2.db', GRACE_PERIOD_S)
    assert other.read_bytes() == before


@pytest.mark.parametrize('place', [2, 1000])
def test_blank_lines_in_a_journal_are_skipped(tmp_path, place):
    path = tmp_path / 'new' / 'study.log'

    def add_trial() -> int:
        study = optuna.create_study(
            study_name='s', storage=open_storage(str(path)), load_if_exists=True
        )
        study.tell(study.ask(), 1.0)
        return len(study.trials)

    assert add_trial() == 1
    lines = path.read_bytes().splitlines(keepends=True)
    lines[place:place] = [b'\n', b' \n']
    path.write_bytes(b''.join(lines))
    assert [add_trial(), add_trial()] == [2, 3]


def test_a_worker_reads_what_others_add_to_a_journal(tmp_path):
    first, second = (
        optuna.create_study(
            study_name='s', storage=open_storage(str(tmp_path / 'j.log')), load_if_exists=True
        )
        for _ in range(2)
    )
    for count, study in enumerate([first, second] * 3, start=1):
        study.tell(study.ask(), float(count))
        with (tmp_path / 'j.log').open('ab') as file:
            file.write(b'\n')
        assert [len(first.trials), len(second.trials)] == [count, count]


@pytest.mark.parametrize('line', [b'{broken', b'[' * 100_000, b'[1, 2]', b'9' * 5000])
def test_a_damaged_line_of_a_journal_is_named(tmp_path, line):
    path = tmp_path / 'study.log'
    optuna.create_study(study_name='s', storage=open_storage(str(path)))
    path.write_bytes(path.read_bytes() + line + b'\n')
    with pytest.raises(
        BackendUnavailableError, match=r'the line at byte \d+ is damaged: b.*; remove this line'
    ):
        open_storage(str(path))


def test_a_database_that_many_create_at_once_is_created(tmp_path):
    url = f'sqlite:///{tmp_path}/study.db'

    def join(_):
        return optuna.create_study(
            study_name='s', storage=open_storage(url, GRACE_PERIOD_S), load_if_exists=True
        )._study_id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(join, range(8)))) == 1


def test_another_file_is_not_taken_for_a_database(tmp_path):
    (tmp_path / 'notes.txt').write_text('nothing of the kind ' * 100)
    with pytest.raises(BackendUnavailableError, match='file is not a database'):
        open_storage(f'sqlite:///{tmp_path}/notes.txt', GRACE_PERIOD_S)


def test_a_storage_that_goes_away_is_one_line_without_its_password():
    url = 'postgresql://me:secret@host/db'
    with (
        pytest.raises(BackendUnavailableError) as caught,
        storage_errors(url),
    ):
        raise StorageInternalError('storage') from OSError(f'lost {url}\nand more')
    assert str(caught.value).startswith('storage: postgresql://me:***@host/db: cannot be used')
    assert 'secret' not in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'url',
    [
        'postgresql://127.0.0.1:1/d?user=me&password=SECRET',
        'postgresql://127.0.0.1:1/d?password=hid@SECRET&user=me',
        'postgresql://me@127.0.0.1:1/d?sslpassword=SECRET',
        'postgresql://me:hid@SECRET@127.0.0.1:1/d',
        'postgresql://me:h@SECRET@SECRET2@127.0.0.1:1/d',
        'postgresql://me:hid/SECRET@127.0.0.1:1/d',
        'nonsense://me:SECRET@127.0.0.1:1/d',
    ],
)
def test_no_part_of_a_password_is_shown(url):
    with pytest.raises(BackendUnavailableError) as caught:
        open_storage(url, GRACE_PERIOD_S)
    assert 'SECRET' not in str(caught.value)
    assert '***' in str(caught.value)


def test_what_a_database_took_for_its_host_is_not_shown():
    url = 'postgresql://me:p@ss@127.0.0.1:1/d'
    with pytest.raises(BackendUnavailableError) as caught, storage_errors(url):
        raise StorageInternalError('storage') from OSError("failed to resolve host 'ss@127.0.0.1'")
    assert str(caught.value).startswith(
        'storage: postgresql://me:***@127.0.0.1:1/d: cannot be used: failed to resolve host '
        "'***@127.0.0.1'"
    )


def test_a_password_that_a_database_repeats_as_it_is_meant_is_not_shown():
    url = 'postgresql://me:hid%2FSECRET@127.0.0.1:1/d'
    with pytest.raises(BackendUnavailableError) as caught, storage_errors(url):
        raise StorageInternalError('storage') from OSError('the password "hid/SECRET" is wrong')
    assert 'the password "***" is wrong' in str(caught.value)


def test_a_mistyped_url_does_not_become_a_file_named_by_its_password(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackendUnavailableError, match='got a URL without ://') as caught:
        open_storage('postgresql:/me:SECRET@host/d')
    assert 'SECRET' not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
