"""Opens the database or journal of a study; its errors become one line without passwords."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
import math
import os
from pathlib import Path
import re
import sqlite3
import time
from typing import Any
import warnings

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from p2d_node.durable_files import is_link, refuse_link
from p2d_node.errors import BackendUnavailableError, first_line, MAX_QUOTE_CHARACTERS, quote
from p2d_node.evaluation.url_secrets import mask_secrets, secrets_of
from p2d_node.sqlite_files import check_rows_are_stored, check_side_files, SIDE_FILES
from p2d_node.tuning.journal import open_journal, SUFFIX
from sqlalchemy import event, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

SQLITE_TIMEOUT_S = 60
"""How long a worker waits for others to finish writing."""

MISTYPED_URL = re.compile(r'[A-Za-z][\w+]*:.*@')

MAX_SQLITE_BYTES = 256 << 20
"""Of a study in SQLite, and of each file beside it. A trial takes about 2 kB, and Optuna keeps all
trials in memory."""

MAX_ROWS, MAX_ROW_BYTES = 1 << 18, 32 << 20
"""Of a study in SQLite. A trial has about 12 rows of 50 bytes. Optuna makes 1.7 kB of a row, and
texts of a study are JSON, of which Python makes 30 times as much."""

MAX_LEAD = timedelta(minutes=1)
"""Of the clock of another worker. Heartbeats are in UTC."""

MAX_UNFINISHED = 256
"""Trials of a study that run or wait at one time: one per worker. Ending that of a dead worker
takes some 15 ms, and Optuna reads all that wait before each trial."""

UNFINISHED = """SELECT count(*) FROM trials WHERE state IN ('RUNNING', 'WAITING')
    GROUP BY study_id ORDER BY 1 DESC LIMIT 1"""

ATTRIBUTES = tuple(
    f'{of}_{kind}_attributes' for of in ('study', 'trial') for kind in ('user', 'system')
)
MAX_VALUES = 1 << 20
"""Of the JSON in these tables. A trial has about 15; Optuna reads and copies them."""

CONNECT_TIMEOUT_S = 10
NUM_ATTEMPTS = 10
"""If two workers start at once and both create the tables, the second one tries again."""

RACED = ('already exists', 'locked', 'duplicate', 'unique constraint')
"""Words in the errors that the second worker gets."""

DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What Optuna and SQLAlchemy raise for values of a wrong type, or that are missing."""

GRACE_PERIOD_S = 120.0
HEARTBEATS_PER_GRACE_PERIOD = 4

MAX_RETRIES = 2
"""A trial that failed, or whose worker died, is run so many times more."""


def open_storage(
    storage: str, grace_period_s: float = GRACE_PERIOD_S
) -> RDBStorage | JournalStorage:
    """Open or create a database or a journal.

    Args:
        storage: `sqlite:///PATH`, `postgresql://...` or another URL that SQLAlchemy knows; or the
            path of an SQLite file; or the path of a journal, which ends in `.log`.
        grace_period_s: After so many seconds without a heartbeat a running trial counts as dead.
            A journal has no heartbeats.

    Raises:
        BackendUnavailableError: It cannot be opened, its driver is not installed, or it is a link.
    """
    if '://' not in storage:
        _check_path(storage)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _open_errors(storage), warnings.catch_warnings():
        warnings.simplefilter('ignore', ExperimentalWarning)
        if '://' not in storage:
            Path(storage).expanduser().parent.mkdir(parents=True, exist_ok=True)
            if storage.endswith(SUFFIX):
                return open_journal(Path(storage).expanduser())
        return _retried(lambda: _open_database(_url_of(storage), math.ceil(grace_period_s)))


def retry_callback(max_retry: int | None) -> RetryHeartbeatStaleTrialCallback:
    """Return the callback that queues a failed trial again, at most `max_retry` times."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ExperimentalWarning)
        return RetryHeartbeatStaleTrialCallback(max_retry=max_retry)


def trials_with_heartbeat(storage: optuna.storages.BaseStorage) -> set[int]:
    """Return the ids of the trials whose workers have recorded a heartbeat."""
    backend = getattr(storage, '_backend', storage)  # Optuna puts a cache before it
    if not isinstance(backend, RDBStorage):
        return set()
    with backend.engine.connect() as connection:
        return set(connection.execute(text('SELECT trial_id FROM trial_heartbeats')).scalars())


def _check_path(storage: str) -> None:
    if MISTYPED_URL.match(storage):
        raise BackendUnavailableError(
            'storage: got a URL without ://, which would be a file with the password in its name, '
            'allowed: a path, or a URL, such as postgresql://...'
        )
    if '?' in storage:  # SQLAlchemy takes what follows for options
        raise BackendUnavailableError(
            f'storage: got {quote(storage)}, allowed: a path without ?, or a URL, such as '
            'sqlite:///study.db'
        )
    refuse_link(Path(storage).expanduser(), 'storage', error=BackendUnavailableError)


def _url_of(storage: str) -> str:
    return storage if '://' in storage else f'sqlite:///{Path(storage).expanduser()}'


def _open_database(url: str, grace_period_s: int) -> RDBStorage:
    is_sqlite = url.startswith('sqlite')
    settings: dict[str, Any] = {} if is_sqlite else {'pool_pre_ping': True}
    if is_sqlite:
        settings['connect_args'] = {
            'timeout': SQLITE_TIMEOUT_S,
            'factory': _PlainDatabase,
        }
    elif url.startswith('postgresql'):
        settings['connect_args'] = {'connect_timeout': CONNECT_TIMEOUT_S}
    storage = RDBStorage(
        url,
        engine_kwargs=settings,
        heartbeat_interval=max(1, grace_period_s // HEARTBEATS_PER_GRACE_PERIOD),
        grace_period=grace_period_s,
        heartbeat_stale_trial_callback=retry_callback(MAX_RETRIES),
    )
    if is_sqlite:
        _lock_whole_transactions(storage)
    return storage


class _PlainDatabase(sqlite3.Connection):
    """A connection to a database whose rows are in its file."""

    def __init__(self, path: str, *args: Any, **settings: Any) -> None:
        if settings.get('uri'):
            raise ValueError('got an address with file:, allowed: sqlite:///PATH')
        if is_link(Path(path)):
            raise ValueError('it is a symbolic or hard link, allowed: a file of its own')
        check_side_files(Path(path))
        _check_sizes(path)
        super().__init__(path, *args, **settings)
        try:
            check_rows_are_stored(self, Path(path), max_rows=MAX_ROWS, max_bytes=MAX_ROW_BYTES)
            _check_content(self)
        except BaseException:
            self.close()
            raise


def _check_content(database: sqlite3.Connection) -> None:
    """Raise ValueError for what would take much time: many values, or workers that seem alive."""
    if not database.execute('PRAGMA table_info(trial_heartbeats)').fetchall():
        return  # a new study
    num_values = sum(_count_values(database, table) for table in ATTRIBUTES)
    if num_values > MAX_VALUES:
        raise ValueError(f'got {num_values} values of attributes, allowed: up to {MAX_VALUES}')
    for (count,) in database.execute(UNFINISHED):
        check_unfinished(count)
    ((last,),) = database.execute('SELECT max(heartbeat) FROM trial_heartbeats')
    latest = datetime.now(timezone.utc) + MAX_LEAD
    if last is not None and str(last) > latest.isoformat(' '):
        raise ValueError(f'a worker has the heartbeat {quote(last)}, later than now')


def check_unfinished(count: int) -> None:
    """Raise `ValueError` if too many trials of a study run or wait."""
    if count > MAX_UNFINISHED:
        raise ValueError(f'got {count} trials that run or wait, allowed: up to {MAX_UNFINISHED}')


def _count_values(database: sqlite3.Connection, table: str) -> int:
    """Return about how many values the JSON of a table has."""
    separators = "replace(replace(replace(value_json, ',', ''), '[', ''), '{', '')"
    ((count,),) = database.execute(
        f'SELECT sum(length(value_json) - length({separators})) FROM {table}'
    )
    return int(count or 0)


def _check_sizes(path: str) -> None:
    """Raise ValueError if the files of a study are larger than a search ever makes them."""
    for name in (path, *(f'{os.path.realpath(path)}{suffix}' for suffix in SIDE_FILES)):
        try:
            size = os.stat(name).st_size
        except FileNotFoundError:  # new, or another process has just ended its transaction
            continue
        if size > MAX_SQLITE_BYTES:
            raise ValueError(
                f'{quote(name)} has {size} bytes, allowed: at most {MAX_SQLITE_BYTES}; name '
                'another file, or a database server'
            )


def _lock_whole_transactions(storage: RDBStorage) -> None:
    """Make SQLite lock when a transaction begins, not at its first write.

    Otherwise two workers can both read that a trial is waiting, and both run it.
    """
    storage.engine.dispose()

    @event.listens_for(storage.engine, 'connect')
    def disable_implicit_transactions(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(storage.engine, 'begin')
    def begin(connection: Any) -> None:
        connection.exec_driver_sql('BEGIN IMMEDIATE')


def _retried(open_: Callable[[], RDBStorage]) -> RDBStorage:
    for attempt in range(1, NUM_ATTEMPTS):
        try:
            return open_()
        except SQLAlchemyError as err:
            reason = str(err).lower()
            if not any(word in reason for word in RACED):
                raise
            time.sleep(0.1 * attempt)
    return open_()


@contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """Translate the errors of a database that is in use, or whose content is damaged.

    Raises:
        BackendUnavailableError: One line with the reason, without the password.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, OSError, *DAMAGE) as err:
        raise _unusable(storage, err) from err


@contextmanager
def _open_errors(storage: str) -> Iterator[None]:
    """Translate the errors of opening a database; raises as `storage_errors` does."""
    try:
        with storage_errors(storage):
            yield
    except ImportError as err:
        raise BackendUnavailableError(
            f'storage: {mask_secrets(storage)}: its database driver is not installed: '
            f'{first_line(err.__cause__ or err)}; for PostgreSQL: pip install "psycopg[binary]"'
        ) from err
    except RuntimeError as err:
        # Optuna compares the version of the tables with its own.
        raise BackendUnavailableError(
            f'storage: {mask_secrets(storage)}: the tables are of another version of Optuna than '
            f'{optuna.__version__}; back it up, and run: optuna storage upgrade --storage URL; or '
            'name another'
        ) from err


def _unusable(storage: str, err: BaseException) -> BackendUnavailableError:
    cause = err.__cause__ or err
    reason = first_line(getattr(cause, 'orig', None) or cause)
    next_step = 'its content is kept, and the same command continues with it'
    if isinstance(cause, (ArgumentError, NoSuchModuleError)):
        next_step = 'allowed: a path, or a URL that SQLAlchemy knows, such as postgresql://...'
    elif isinstance(cause, DAMAGE):
        next_step = 'restore a copy of it, or name another'
        if not isinstance(cause, ValueError):  # whose text says enough
            reason = f'{type(cause).__name__}: {reason}'
    reason = _without_secrets(reason, storage)[:MAX_QUOTE_CHARACTERS]
    return BackendUnavailableError(
        f'storage: {mask_secrets(storage)}: cannot be used: {reason}; {next_step}'
    )


def _without_secrets(reason: str, storage: str) -> str:
    """Return a database's message without passwords, or parts of them that it took for a host."""
    for password in secrets_of(storage):
        parts = password.split('@')
        for secret in filter(None, ('@'.join(parts[n:]) for n in range(len(parts)))):
            reason = re.sub(rf'(?<!\w){re.escape(secret)}(?!\w)', '***', reason)
    return mask_secrets(reason)
