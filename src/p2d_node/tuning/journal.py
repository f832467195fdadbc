"""A study in a journal file, for machines that share a folder but have no database."""

from __future__ import annotations

from collections.abc import Iterator
import json
from pathlib import Path
import stat
import time
from typing import Any, NamedTuple

from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

SUFFIX = '.log'
"""Files with this ending are journals, not databases."""

MAX_BYTES = 64 << 20
MAX_RECORDS = 200_000
"""A trial has about 25 records."""

MAX_LINE_BYTES = 1 << 20
"""The longest record, the settings of a study, has about 1,000 bytes."""

MAX_CONTAINERS, MAX_VALUES = 1 << 20, 1 << 22
"""Lists and objects, and commas. A record has about 3 and 8; Optuna keeps them in memory."""

MAX_READ_S = 20.0
"""Processor time. Most records take 10 µs each, but Optuna compares some with all others."""


def open_journal(path: Path) -> JournalStorage:
    """Open or create a journal.

    Raises:
        OSError: The file cannot be read or created.
        StorageInternalError: A line is damaged, or the journal is too large.
    """
    return JournalStorage(TolerantJournal(str(path)))


class _Lock(JournalFileOpenLock):
    """A lock that is a file."""

    def acquire(self) -> bool:
        """Wait for the lock.

        Raises:
            StorageInternalError: It is a symbolic link, for which Optuna waits without end if its
                target is missing; or it is a folder, which Optuna waits 30 s for.
        """
        lock = Path(self._lock_file)
        if lock.is_symlink() or (lock.exists() and not lock.is_file()):
            raise StorageInternalError(
                f'the lock {lock} is a symbolic link or no file, allowed: a file; remove it'
            )
        return super().acquire()


class _Place(NamedTuple):
    """The end of a record, and how much the journal has up to there."""

    offset: int
    num_containers: int
    num_values: int

    def after(self, line: bytes) -> _Place:
        """Return the place after one more line."""
        return _Place(
            self.offset + len(line),
            self.num_containers + line.count(b'[') + line.count(b'{'),
            self.num_values + line.count(b','),
        )


class TolerantJournal(JournalFileBackend):
    """Reads past blank lines, which some network file systems leave in files."""

    def __init__(self, file_path: str) -> None:
        """Use or create a file."""
        super().__init__(file_path, _Lock(file_path))
        self._path = file_path
        self._places = {0: _Place(0, 0, 0)}

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Yield the records from the given number on.

        Raises:
            StorageInternalError: A line is damaged, or the journal is too large.
        """
        _check_size(Path(self._path))
        start_s = time.thread_time()
        number = log_number_from if log_number_from in self._places else 0
        place = self._places[number]
        with Path(self._path).open('rb') as file:
            file.seek(place.offset)
            while line := file.readline(MAX_LINE_BYTES + 1):
                if len(line) > MAX_LINE_BYTES:
                    raise _too_large(
                        f'a line of more than {MAX_LINE_BYTES} bytes', f'{MAX_LINE_BYTES}'
                    )
                if not line.endswith(b'\n'):
                    return  # another worker is still writing it
                place = place.after(line)
                if not line.strip():
                    continue
                number += 1
                _check_records(number, place, time.thread_time() - start_s)
                self._places[number] = place
                if number > log_number_from:
                    yield self._parse(line, place.offset - len(line))

    def _parse(self, line: bytes, offset: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise StorageInternalError(
                f'the line at byte {offset} is damaged: {line[:40]!r}; remove this line'
            )
        return record


def _check_size(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise StorageInternalError('the journal is a device or a pipe, allowed: a file')
    if status.st_size > MAX_BYTES:
        raise _too_large(f'{status.st_size} bytes', f'{MAX_BYTES}')


def _check_records(number: int, place: _Place, seconds: float) -> None:
    if number > MAX_RECORDS:
        raise _too_large(f'more than {MAX_RECORDS} records', f'{MAX_RECORDS}')
    if place.num_containers > MAX_CONTAINERS:
        raise _too_large(f'{place.num_containers} lists and objects', f'{MAX_CONTAINERS}')
    if place.num_values > MAX_VALUES:
        raise _too_large(f'{place.num_values} values', f'{MAX_VALUES}')
    if seconds > MAX_READ_S:
        raise _too_large(f'records that take more than {MAX_READ_S:g} s', f'{MAX_READ_S:g} s')


def _too_large(got: str, allowed: str) -> StorageInternalError:
    return StorageInternalError(
        f'the journal has {got}, allowed: at most {allowed}; name a database, or another journal'
    )
