"""Where a study lives: a database by its URL, or a journal file by its path.

Errors of databases and of Optuna end here: what leaves is one line, without passwords.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import fcntl
import os
from pathlib import Path
import re
import time
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from p2d_node.errors import BackendUnavailableError
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

SQLITE_TIMEOUT_S = 60
"""How long a worker waits while others write."""

CONNECT_TIMEOUT_S = 10
NUM_ATTEMPTS = 10
"""Two workers that start at once may both try to create the tables; the second tries again."""

RACED = ('already exists', 'locked', 'duplicate', 'unique constraint')
"""What databases say to the one who comes second."""

PASSWORDS = (
    re.compile(r'(?P<before>(?:password|passwd|pwd)=)(?P<password>[^&\s]+)', re.IGNORECASE),
    re.compile(r'(?P<before>://[^:/@]*:)(?P<password>.+)(?=@)'),
)
"""One among the options of a URL, and one before its host; that may hold an @ itself."""

JOURNAL_START = b'{"op_code":'
"""What every line of Optuna's journals begins with."""


def mask_password(text: str) -> str:
    """Return the name of a storage, or a text with such names, as it may be shown."""
    for pattern in PASSWORDS:
        text = pattern.sub(r'\g<before>***', text)
    return text


def open_storage(storage: str) -> BaseStorage:
    """Open or create a storage.

    Args:
        storage: `sqlite:///PATH`, `postgresql://...` or another database that SQLAlchemy knows;
            or the path of a journal file.

    Raises:
        BackendUnavailableError: It cannot be reached, or its driver is not installed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with storage_errors(storage):
        if '://' in storage:
            return _retried(lambda: _open_database(storage))
        return _open_journal(Path(storage).expanduser())


def _open_database(url: str) -> RDBStorage:
    if not url.startswith('sqlite'):
        settings: dict[str, Any] = {'pool_pre_ping': True}
        if url.startswith('postgresql'):
            settings['connect_args'] = {'connect_timeout': CONNECT_TIMEOUT_S}
        return RDBStorage(url, engine_kwargs=settings)
    storage = RDBStorage(url, engine_kwargs={'connect_args': {'timeout': SQLITE_TIMEOUT_S}})
    _lock_whole_transactions(storage)
    return storage


def _lock_whole_transactions(storage: RDBStorage) -> None:
    """Let SQLite lock when a transaction begins, not at its first write.

    Otherwise two workers can both read that a trial waits, and both take it.
    """
    storage.engine.dispose()

    @event.listens_for(storage.engine, 'connect')
    def leave_transactions_to_us(connection: Any, _: Any) -> None:
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


def _open_journal(path: Path) -> JournalStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        _check_journal(path)
        _drop_cut_line(path)
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except (AssertionError, LookupError, TypeError) as err:
        raise ValueError(
            f'a line of it is no operation on trials ({type(err).__name__}); name another'
        ) from err


def _check_journal(path: Path) -> None:
    """Raise `ValueError` where the file is something else: it would be written to."""
    with path.open('rb') as file:
        start = file.read(len(JOURNAL_START))
    # An empty file, or one whose first line a power cut left unfinished, may become a journal.
    if not JOURNAL_START.startswith(start):
        raise ValueError('the file is not a journal of trials; name another')


def _drop_cut_line(path: Path) -> None:
    """Remove a last line that a power cut left unfinished: nobody could read past it."""
    with path.open('r+b') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        content = file.read()
        whole = content.rfind(b'\n') + 1
        if whole == len(content):
            return
        time.sleep(1.0)  # it may be a line that another worker is writing just now
        file.seek(0)
        if file.read() == content:
            file.truncate(whole)
            os.fsync(file.fileno())


@contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """Translate what goes wrong with the storage.

    Raises:
        BackendUnavailableError: Says what, without the password.
    """
    try:
        yield
    except UpdateFinishedTrialError:
        raise  # an answer, not a fault: see ledger.py
    except ImportError as err:
        raise BackendUnavailableError(
            f'--storage {mask_password(storage)}: its database driver is not installed: '
            f'{_first_line(err.__cause__ or err)}; for PostgreSQL: pip install "psycopg[binary]"'
        ) from err
    except (SQLAlchemyError, StorageInternalError, OSError, ValueError) as err:
        reason = _first_line(getattr(err.__cause__ or err, 'orig', None) or err)
        reason = _without_secrets(reason, storage)
        raise BackendUnavailableError(
            f'--storage {mask_password(storage)}: cannot be used: {reason}; what it holds is '
            'kept, and the same command goes on with it'
        ) from err


def _without_secrets(reason: str, storage: str) -> str:
    """Return what a database says, without passwords and parts that it took for a host."""
    for match in (match for pattern in PASSWORDS for match in pattern.finditer(storage)):
        parts = match['password'].split('@')
        for secret in filter(None, ('@'.join(parts[n:]) for n in range(len(parts)))):
            reason = re.sub(rf'(?<!\w){re.escape(secret)}(?!\w)', '***', reason)
    return mask_password(reason)


def _first_line(err: BaseException) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0]
