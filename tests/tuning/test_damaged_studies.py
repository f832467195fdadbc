"""Studies that are damaged or hostile: one line that names the storage, and at once."""

from __future__ import annotations

from contextlib import closing
import json
import math
import os
from pathlib import Path
import re
import shutil
import sqlite3

import optuna
from optuna.exceptions import StorageInternalError
from p2d_node.cli.main import EXIT_BAD_INPUT, main
from p2d_node.errors import BackendUnavailableError
from p2d_node.sqlite_files import JOURNAL_MAGIC
from p2d_node.tuning import journal, storage
from p2d_node.tuning.picture import plot_study
from p2d_node.tuning.results import collect_results
from p2d_node.tuning.storage import MAX_SQLITE_BYTES, open_storage, storage_errors
from p2d_node.tuning.trials import MethodStudy
import page_bombs
import pytest
from trial_worker import evaluate, join_study, run_all, score_of, SPACE


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A folder with studies of one complete trial."""
    folder = tmp_path_factory.mktemp('whole')
    for name in ('study.db', 'study.log'):
        run_all(join_study(str(folder / name), 's', 1))
    return folder


@pytest.fixture
def database(tmp_path, whole):
    return Path(shutil.copy(whole / 'study.db', tmp_path))


@pytest.fixture
def records(tmp_path, whole):
    return Path(shutil.copy(whole / 'study.log', tmp_path))


def read(path: Path):
    study = join_study(str(path), 's', 1)
    assert study.is_done
    return collect_results({'tpe': study}, SPACE, score_of)


def refuse(path: Path, reason: str) -> None:
    with pytest.raises(BackendUnavailableError, match=reason) as caught:
        read(path)
    assert str(caught.value).startswith(f'storage: {path}: cannot be used: ')
    assert '\n' not in str(caught.value)


def change(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(statement)
    connection.close()


ENDLESS = (
    'PRAGMA legacy_alter_table=ON; ALTER TABLE trials RENAME TO t; CREATE VIEW trials AS WITH '
    'RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n) SELECT t.* FROM n, t'
)


@pytest.mark.attack(
    'a study in an SQLite file whose table is a view that computes without end',
    'refused: every row must be in the file',
)
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ('statement', 'reason'),
    [
        (ENDLESS, "got 'trials', allowed: tables and indices"),
        (
            'ALTER TABLE trials ADD x GENERATED ALWAYS AS (1) VIRTUAL',
            "computed column of 'trials'",
        ),
        (
            'CREATE TRIGGER x AFTER INSERT ON trials BEGIN DELETE FROM trials; END',
            "got 'x', allowed: tables and indices",
        ),
        (f'CREATE TABLE a (b{" " * (1 << 20)})', 'got a schema of 105.* bytes, allowed: up to'),
    ],
)
def test_a_database_that_computes_is_refused(database, statement, reason):
    change(database, statement)
    for name in (str(database), f'sqlite:///{database}'):
        with pytest.raises(BackendUnavailableError, match=reason):
            open_storage(name)


@pytest.mark.attack(
    'a study in an SQLite file of some pages that name one page again and again: billions of rows',
    'refused when it is opened: the rows of a database have no more bytes than its pages',
)
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ('name', 'kind'),
    [('version_info', 'table'), ('trials', 'table'), ('ix_trials_study_id', 'index')],
)
def test_a_page_that_is_named_again_and_again_is_refused(database, name, kind):
    page_bombs.repeat_pages(database, name, kind)
    refuse(database, f"got rows in '{name}' that would need more than the .* bytes of the file")


@pytest.mark.attack(
    'a study whose pages name one page again and again, in a file that seems to have terabytes: '
    'it has a hole, or the write-ahead log beside it says so',
    'refused when it is opened: an index has as many entries as a study may have rows',
)
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    'claim_pages', [page_bombs.claim_pages_in_wal, page_bombs.claim_pages], ids=['log', 'hole']
)
def test_pages_that_are_only_claimed_hold_no_rows(database, monkeypatch, claim_pages):
    monkeypatch.setattr(storage, 'MAX_SQLITE_BYTES', 1 << 50)
    page_bombs.repeat_pages(database, 'ix_trials_study_id', 'index')
    claim_pages(database, (1 << 31) - 2)
    refuse(database, 'got more than 262144 rows|would need more than the .* bytes of the file')


@pytest.mark.attack(
    'a study in an SQLite file whose schema names one page a hundred times on each of four levels',
    'refused after a million steps of SQLite',
)
@pytest.mark.timeout(20)
def test_a_schema_without_end_is_refused(tmp_path):
    path = tmp_path / 'study.db'
    page_bombs.make_schema_endless(path)
    refuse(path, 'got a schema without end, allowed: tables and indices')


def test_a_study_that_takes_too_much_memory_is_one_line(database):
    with pytest.raises(BackendUnavailableError, match='MemoryError'), storage_errors('study.db'):
        raise MemoryError


def set_schema(path: Path, name: str, old: str, new: str) -> None:
    """Change the statement of a table or index without running it."""
    change(
        path,
        'PRAGMA writable_schema=ON; UPDATE sqlite_master SET '
        f"sql = replace(sql, '{old}', '{new}') WHERE name = '{name}'",
    )


SLOW = "printf(''%.*c'', 100000000, ''a'') NOT LIKE ''%'' || printf(''%.*c'', 40000, ''b'')"
STATE = 'state VARCHAR(8) NOT NULL'


@pytest.mark.attack(
    'a study in an SQLite file with an expression that SQLite evaluates for hours on each row',
    'refused before a row is read or written: a schema holds names, types and constants',
)
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ('name', 'old', 'new'),
    [
        ('trials', STATE, f'{STATE} CHECK ({SLOW})'),
        ('trials', STATE, f'{STATE} DEFAULT ({SLOW})'),
        ('trials', STATE, f'{STATE} CHECK (state IN (zeroblob(9)))'),
        ('trials', STATE, f'{STATE} CHECK (datetime_start LIKE state)'),
        ('ix_trials_study_id', '(study_id)', f'(study_id) WHERE {SLOW}'),
        ('ix_trials_study_id', '(study_id)', '(study_id) WHERE zeroblob(9)'),
        ('ix_trials_study_id', '(study_id)', '(zeroblob(1000000000))'),
        ('ix_trials_study_id', 'ON', '/**/ ON'),
    ],
)
def test_a_schema_with_an_expression_is_refused(database, name, old, new):
    set_schema(database, name, old, new)
    with pytest.raises(BackendUnavailableError, match=f"got an expression in '{name}'"):
        open_storage(str(database))


def test_the_tables_of_older_versions_of_optuna_are_plain(database):
    """SQLAlchemy 1.3 listed the values of an Enum; alembic adds columns with a default."""
    check = "CONSTRAINT trialstate CHECK (state IN (''RUNNING'', ''COMPLETE''))"
    set_schema(database, 'trials', STATE, f"{STATE} DEFAULT ''COMPLETE'' {check}")
    assert len(read(database)) == 1


def forge_journal(database: Path, victim: Path) -> None:
    """Write a journal of a crash that names a super-journal; it restores the first page."""
    content = database.read_bytes()
    page_bytes = int.from_bytes(content[16:18], 'big')
    page, name = content[:page_bytes], str(victim).encode()
    checksum = sum(page[at] for at in range(page_bytes - 200, 0, -200))
    words = (1, 0, len(content) // page_bytes, 512, page_bytes)  # pages, nonce, sizes

    def number(value: int) -> bytes:
        return value.to_bytes(4, 'big')

    header = (JOURNAL_MAGIC + b''.join(map(number, words))).ljust(512, b'\0')
    record = number(1) + page + number(checksum)
    end = number((1 << 30) // page_bytes + 1) + name + number(len(name)) + number(sum(name))
    Path(f'{database}-journal').write_bytes(header + record + end + JOURNAL_MAGIC)


@pytest.mark.attack(
    'a study beside whose SQLite file lies a journal that makes SQLite delete a file of the user',
    'refused before the database is opened; a journal that a crash left is used',
)
def test_a_journal_that_names_another_file_is_refused(database, tmp_path):
    victim = tmp_path / 'victim'
    victim.write_text('precious')
    forge_journal(database, victim)
    for name in (str(database), f'sqlite:///{database}'):
        with pytest.raises(BackendUnavailableError, match='which names another file to delete'):
            open_storage(name)
    assert victim.read_text() == 'precious'
    with pytest.raises(BackendUnavailableError, match='got an address with file:'):
        open_storage(f'sqlite:///file:{database}?uri=true')
    change(database, 'SELECT * FROM trials')
    assert not victim.exists()  # SQLite itself does it


@pytest.mark.attack(
    "links in place of SQLite's files beside a study, through which it writes to another file",
    'refused before the database is opened',
)
@pytest.mark.parametrize('is_hard', [False, True])
@pytest.mark.parametrize('suffix', ['-journal', '-wal', '-shm'])
def test_files_beside_a_database_are_plain(database, tmp_path, suffix, is_hard):
    victim, beside = tmp_path / 'victim', Path(f'{database}{suffix}')
    if is_hard:
        victim.write_text('of the user')
        beside.hardlink_to(victim)
    else:
        beside.symlink_to(victim)
    with pytest.raises(BackendUnavailableError, match=f'study.db{suffix}.*no plain file'):
        open_storage(str(database))
    assert not is_hard or victim.read_text() == 'of the user'
    assert victim.exists() == is_hard


def test_the_journal_of_a_crash_is_rolled_back(whole, tmp_path):
    running = shutil.copy(whole / 'study.db', tmp_path / 'running.db')
    connection = sqlite3.connect(running)
    connection.executescript('PRAGMA cache_size=1; BEGIN; DELETE FROM trials; CREATE TABLE x(y)')
    connection.executemany('INSERT INTO x VALUES (?)', [(bytes(4000),)] * 100)
    for suffix in ('', '-journal'):
        shutil.copy(f'{running}{suffix}', tmp_path / f'study.db{suffix}')
    connection.close()
    assert (tmp_path / 'study.db').stat().st_size > 100 * 4000
    assert len(read(tmp_path / 'study.db')) == 1
    assert not (tmp_path / 'study.db-journal').exists()


@pytest.mark.parametrize(
    'statement',
    [
        "UPDATE trial_user_attributes SET value_json = 'xx'",
        "UPDATE trial_params SET distribution_json = '{}'",
        "UPDATE trials SET state = 'WHAT'",
        "UPDATE trial_values SET value = 'abc'",
        "UPDATE trial_values SET value_type = 'zz'",
        "UPDATE trials SET datetime_start = 'yesterday'",
        'DELETE FROM trial_values',
        'DROP TABLE trial_values',
    ],
)
def test_a_damaged_database_is_one_line(database, statement):
    change(database, statement)
    refuse(database, 'cannot be used')


@pytest.mark.parametrize(
    ('directions', 'settings', 'reason'),
    [
        (['minimize'], {}, 'the direction of p2d-mini/tpe: got minimize, allowed: maximize'),
        (['maximize', 'minimize'], {}, 'got maximize, minimize, allowed: maximize'),
        (['maximize'], [], r'the settings of p2d-mini/tpe: got \[\], allowed: a table'),
        (['maximize'], None, 'the settings of p2d-mini/tpe: got None'),
    ],
)
def test_a_study_of_something_else_is_refused(
    searched_folder, tmp_path, capsys, directions, settings, reason
):
    storage = str(tmp_path / 'study.log')
    study = optuna.create_study(
        study_name='p2d-mini/tpe', storage=open_storage(storage), directions=directions
    )
    study.set_user_attr('settings', settings)
    assert search(searched_folder, storage) == EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(f'storage: {storage}: cannot be used: .*{reason}', line)


def search(folder: Path, storage: str) -> int:
    data = ('--data', str(folder / 'drivelm.json'), '--images', str(folder))
    out = str(Path(storage).parent)
    return main(['tune-ratios', *data, '--out', out, '--storage', storage, '--methods', 'tpe'])


def test_a_damaged_trial_is_told_before_the_search(searched_folder, tmp_path, capsys):
    storage = str(tmp_path / 'study.log')
    study = optuna.create_study(
        study_name='p2d-mini/tpe', storage=open_storage(storage), direction='maximize'
    )
    study.add_trial(optuna.trial.create_trial(value=0.5))
    assert search(searched_folder, storage) == EXIT_BAD_INPUT
    assert 'trial 0 of tpe: ratios is missing; restore a copy' in capsys.readouterr().err
    assert not (tmp_path / 'cache').exists()


def add_record(path: Path, record: object) -> None:
    with path.open('a') as file:
        file.write(json.dumps(record) + '\n')


TRIAL = {'op_code': 4, 'study_id': 0, 'worker_id': 'w', 'datetime_start': '2026-01-01T00:00:00'}
PARAM = {'op_code': 5, 'trial_id': 1, 'worker_id': 'w', 'param_name': 'x'}


@pytest.mark.parametrize(
    'added',
    [
        [{'op_code': 99}],
        [{'worker_id': 'w'}],
        [{'op_code': 4, 'study_id': 0, 'worker_id': 'w'}],
        [{**TRIAL, 'datetime_start': 'yesterday'}],
        [{**TRIAL, 'state': 'WHAT'}],
        [TRIAL, {**PARAM, 'param_value_internal': 1.0, 'distribution': []}],
        [{**TRIAL, 'state': 1, 'values': []}],
        [{**TRIAL, 'state': 1, 'values': 'high'}],
        [{**TRIAL, 'state': 3, 'system_attrs': {'retry_history': {'a': 1}}}],
    ],
)
def test_a_damaged_journal_is_one_line(records, added):
    for record in added:
        add_record(records, record)
    refuse(records, 'restore a copy of it, or name another')


GOOD = {'ratios': {'LEFT': 0.5, 'RIGHT': 0.5}, 'tokens_kept': 100, 'language': 0.5}


@pytest.mark.attack(
    'a study with a trial of a score that its answers and ratios do not give',
    'refused: the score is computed again from its parts',
)
@pytest.mark.parametrize(
    ('values', 'facts', 'reason'),
    [
        (
            [float('nan')],
            {},
            r'trial 1 of tpe: score: got \[nan\], allowed: one number, -0.1,',
        ),
        ([1e999], {}, r'score: got \[inf\]'),
        ([0.5, 0.5], {}, r'score: got \[0.5, 0.5\]'),
        ([True], {}, r'score: got \[True\]'),
        ([1e308], {}, r'score: got \[1e[+]308\], allowed: one number, -0.1, as its parts say'),
        ([-0.1], {'language': 1.5}, 'language: got 1.5, allowed: 0 to 1, or null'),
        ([-0.1], {'tokens_kept': 10**30}, 'tokens_kept: got 10+, allowed: 100, as its ratios say'),
        ([-0.1], {'tokens_kept': None}, 'tokens_kept: got None'),
        ([-0.1], {'language': 'much'}, "language: got 'much', allowed: 0 to 1, or null"),
        ([-0.1], {'accuracy': float('inf')}, 'accuracy: got inf'),
        ([-0.1], {'seconds': 'long'}, "seconds: got 'long'"),
        ([-0.1], {'seconds': -1}, 'seconds: got -1'),
        ([-0.1], {'num_cut': -1}, 'num_cut: got -1'),
        (
            [-0.1],
            {'ratios': [1, 2]},
            r'ratios: got \[1, 2\], allowed: 0.001 to 1 for each',
        ),
        (
            [-0.1],
            {'ratios': {'LEFT': 0.5}},
            'ratios: got .*, allowed: 0.001 to 1 for each',
        ),
        ([-0.1], {'ratios': {'LEFT': 0.5, 'RIGHT': 7}}, 'ratios: got'),
    ],
)
def test_a_trial_that_no_search_can_have_is_refused(records, values, facts, reason):
    attributes = {**GOOD, 'accuracy': None, **facts}
    add_record(records, {**TRIAL, 'state': 1, 'values': values, 'user_attrs': attributes})
    refuse(records, reason)


@pytest.mark.parametrize('name', ['language', 'accuracy', 'ratios', 'tokens_kept'])
def test_a_trial_without_a_value_is_refused(records, name):
    attributes = {**GOOD, 'accuracy': None}
    del attributes[name]
    add_record(records, {**TRIAL, 'state': 1, 'values': [-0.1], 'user_attrs': attributes})
    refuse(records, f'trial 1 of tpe: {name} is missing')


@pytest.mark.attack(
    'a journal of very many records, or of records that Optuna compares with all others',
    'refused from 64 MiB, 200,000 records, or 20 s of reading',
)
def test_a_journal_that_takes_too_long_to_read_is_refused(records, monkeypatch):
    size = records.stat().st_size
    with records.open('r+b') as file:
        file.truncate(journal.MAX_BYTES + 1)  # without a block on the disk
    refuse(records, 'the journal has 67108865 bytes, allowed: at most 67108864; name a database')
    with records.open('r+b') as file:
        file.truncate(size)
    read(records)
    monkeypatch.setattr(journal, 'MAX_RECORDS', 5)
    refuse(records, 'more than 5 records')
    monkeypatch.undo()
    monkeypatch.setattr(journal, 'MAX_READ_S', 0.0)
    refuse(records, 'records that take more than 0 s')


@pytest.mark.timeout(20)
def test_a_journal_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / 'study.log')
    refuse(tmp_path / 'study.log', 'the journal is a device or a pipe, allowed: a file')


@pytest.mark.timeout(20)
@pytest.mark.parametrize('make', [lambda lock: lock.symlink_to('missing'), Path.mkdir])
def test_a_lock_that_is_no_file_is_refused(records, make):
    lock = records.with_name('study.log.lock')
    make(lock)
    study = optuna.load_study(study_name='s', storage=open_storage(str(records)))
    worker = MethodStudy(study, storage=str(records), num_trials=2, grace_period_s=60.0)
    with pytest.raises(BackendUnavailableError, match=r'lock .* is a symbolic link or .*; remove'):
        worker.run_trial(evaluate)
    assert lock.is_symlink() or lock.is_dir()


@pytest.mark.attack(
    'a study in SQLite of many gigabytes, or with such a file beside it',
    'refused from 256 MiB, before it is opened',
)
@pytest.mark.parametrize('suffix', ['', '-wal', '-journal'])
def test_a_study_in_sqlite_that_is_too_large_is_refused(database, suffix):
    with open(f'{database}{suffix}', 'ab') as file:
        file.truncate(MAX_SQLITE_BYTES + 1)  # without a block on the disk
    refuse(database, 'has 268435457 bytes, allowed: at most 268435456; name another file')


@pytest.mark.attack(
    'a study in SQLite with millions of small rows, or of texts that are lists without end',
    'refused above 262,144 rows, or 32 MiB in all rows',
)
@pytest.mark.parametrize(
    ('num_rows', 'text'), [(1 << 18, '[]'), (40, '[' + '[],' * 300_000 + '[]]')]
)
def test_a_study_in_sqlite_of_too_many_rows_is_refused(database, num_rows, text):
    with closing(sqlite3.connect(database)) as connection, connection:
        ((study,),) = connection.execute('SELECT study_id FROM studies')
        connection.executemany(
            'INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (?, ?, ?)',
            ((study, str(number), text) for number in range(num_rows)),
        )
    refuse(database, 'got more than (262144 rows|33554432 bytes in its rows), allowed: at most')


@pytest.mark.attack(
    'a journal of small lists and objects, which take 30 times as much in memory as in the file',
    'refused from 1 MiB per record, a million lists and objects, or 4 million values',
)
def test_a_journal_of_too_many_values_is_refused(records, monkeypatch):
    size = records.stat().st_size
    limit = journal.MAX_LINE_BYTES
    add_record(records, {**TRIAL, 'user_attrs': {'x': [[]] * (limit // 4)}})
    refuse(records, f'a line of more than {limit} bytes, allowed: at most {limit}')
    os.truncate(records, size)
    for name, what in (('MAX_CONTAINERS', 'lists and objects'), ('MAX_VALUES', 'values')):
        read(records)
        monkeypatch.setattr(journal, name, 20)
        refuse(records, rf'the journal has \d+ {what}, allowed: at most 20; name a database')
        monkeypatch.undo()


def test_values_are_counted_over_all_records_and_all_reads(records, monkeypatch):
    backend = journal.TolerantJournal(str(records))
    number = len(list(backend.read_logs(0)))
    content = records.read_bytes()
    monkeypatch.setattr(journal, 'MAX_CONTAINERS', content.count(b'[') + content.count(b'{') + 1)
    add_record(records, {})
    assert list(backend.read_logs(number)) == [{}]
    add_record(records, {})
    with pytest.raises(StorageInternalError, match='lists and objects'):
        list(backend.read_logs(number + 1))


@pytest.mark.attack(
    'a link in the output folder of a search, named like its study, to a place outside',
    'refused; no database is created there',
)
def test_a_study_in_the_output_folder_that_is_a_link_is_refused(searched_folder, tmp_path, capsys):
    (tmp_path / 'out').mkdir()
    study = tmp_path / 'out' / 'study.db'
    study.symlink_to(tmp_path / 'victim')
    data = ('--data', str(searched_folder / 'drivelm.json'), '--images', str(searched_folder))
    out = ('--out', str(tmp_path / 'out'), '--trials', '1', '--methods', 'tpe', '--limit', '1')
    assert main(['tune-ratios', *data, *out]) == EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"storage: got '{study}', a symbolic or hard link, allowed: " in line
    assert not (tmp_path / 'victim').exists()


@pytest.mark.attack(
    'a link, symbolic or hard, in the folder that a search is started in, named like its storage',
    'refused, as a path and as a URL; what it leads to stays as it was',
)
@pytest.mark.parametrize('prefix', ['', 'sqlite:///'])
def test_a_link_is_no_study(tmp_path, prefix):
    (tmp_path / 'victim').touch()
    for name in ('mine.db', *(() if prefix else ('mine.log',))):
        for link in (Path.symlink_to, Path.hardlink_to):
            link(tmp_path / name, tmp_path / 'victim')
            with pytest.raises(BackendUnavailableError, match='a symbolic or hard link, allowed'):
                open_storage(f'{prefix}{tmp_path / name}')
            (tmp_path / name).unlink()
    assert (tmp_path / 'victim').read_bytes() == b''


@pytest.mark.attack(
    'a study with trials of dead workers, or trials that wait, each of which takes time: minutes',
    'refused above 256 trials that run or wait',
)
@pytest.mark.parametrize('state', ['RUNNING', 'WAITING'])
def test_a_study_of_many_unfinished_trials_is_refused(database, state):
    rows = ','.join(f"({number}, 1, '{state}')" for number in range(1, 258))
    change(database, f'INSERT INTO trials (number, study_id, state) VALUES {rows}')
    refuse(database, 'got 257 trials that run or wait, allowed: up to 256')


@pytest.mark.parametrize(
    ('state', 'key'), [('WAITING', 'fixed_params'), ('RUNNING', 'tpe:relative_params:0')]
)
@pytest.mark.parametrize('number', [-5.0, math.inf])
def test_coming_parameters_out_of_range_are_refused(database, state, key, number):
    change(database, f"INSERT INTO trials (number, study_id, state) VALUES (1, 1, '{state}')")
    camera = next(iter(SPACE.cameras))
    value = json.dumps({camera: number})
    change(
        database,
        'INSERT INTO trial_system_attributes (trial_id, key, value_json) '
        f"VALUES (2, '{key}', '{json.dumps(value) if state == 'RUNNING' else value}')",
    )
    refuse(database, f"trial 1 of tpe: '{camera}': got {number}, allowed: ")


AHEAD = "strftime('%Y-%m-%d %H:%M:%S', 'now', '+5 minutes')"
MANY_VALUES = json.dumps([0] * 300_000)


@pytest.mark.attack(
    'a study with a trial of a worker that seems alive, and that is waited for without end',
    'refused if its heartbeat is a minute ahead, and not waited for if it has none',
)
@pytest.mark.parametrize(
    ('statement', 'reason'),
    [
        (f'UPDATE trial_heartbeats SET heartbeat = {AHEAD}', 'later than now'),
        ("UPDATE trial_heartbeats SET heartbeat = 'x'", "the heartbeat 'x', later than now"),
    ],
)
def test_workers_that_only_seem_alive_are_refused(database, statement, reason):
    change(database, statement)
    refuse(database, reason)


@pytest.mark.parametrize('begun', ['2020', '2999'])
def test_a_running_trial_without_a_heartbeat_is_not_waited_for(database, begun):
    change(database, "UPDATE trials SET state = 'RUNNING'")
    change(database, f"UPDATE trials SET datetime_start = '{begun}-01-01 00:00:00'")
    change(database, 'UPDATE trial_heartbeats SET heartbeat = CURRENT_TIMESTAMP')
    assert not join_study(str(database), 's', 1).has_free_trial()
    change(database, 'DELETE FROM trial_heartbeats')
    assert join_study(str(database), 's', 1).has_free_trial()


@pytest.mark.attack(
    'a study of 32 MiB of JSON in its attributes, which takes 2.9 GB and two minutes',
    'refused above a million values',
)
@pytest.mark.parametrize('table', ['study_user', 'study_system', 'trial_user', 'trial_system'])
def test_the_attributes_of_a_study_have_few_values(database, table):
    column = f'{table[:5]}_id'
    rows = ','.join(f"(1, 'k{number}', '{MANY_VALUES}')" for number in range(4))
    change(database, f'INSERT INTO {table}_attributes ({column}, key, value_json) VALUES {rows}')
    refuse(database, r'got 12\d+ values of attributes, allowed: up to 1048576')


@pytest.mark.attack(
    'a study whose trials have parameters out of range, for which a sampler searches without end',
    'refused before the search',
)
@pytest.mark.parametrize(
    'assignment',
    ['param_value = -5.0', "distribution_json = replace(distribution_json, '0.', '0.0')"],
)
def test_parameters_out_of_range_are_refused(database, assignment):
    change(database, f'UPDATE trial_params SET {assignment}')
    refuse(database, 'trial 0 of tpe: .*: got .*, allowed: ')


@pytest.mark.attack(
    'a link in place of a study that is to be made, to a place that a file there would change',
    'a link that leads to no file is refused; nothing is made',
)
@pytest.mark.parametrize('name', ['mine.db', 'mine.log'])
def test_no_study_is_made_through_a_link(tmp_path, name):
    link = tmp_path / name
    link.symlink_to(tmp_path / 'victim')
    with pytest.raises(BackendUnavailableError, match='a symbolic or hard link, allowed'):
        open_storage(str(link))
    assert not (tmp_path / 'victim').exists()


@pytest.mark.attack(
    'a link in the output folder of a search, named like its picture, to a file of the user',
    'the link is replaced; its target stays as it was',
)
def test_a_link_in_place_of_the_picture_is_replaced(records, tmp_path):
    (tmp_path / 'victim').write_text('precious')
    picture = tmp_path / 'study.png'
    picture.symlink_to('victim')
    plot_study(picture, read(records), 'a study')
    assert picture.is_file()
    assert not picture.is_symlink()
    assert (tmp_path / 'victim').read_text() == 'precious'
