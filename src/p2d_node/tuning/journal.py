"""A study in a journal file, for machines that share a folder but have no database."""

from __future__ import annotations

from collections.abc import Iterator
import json
from pathlib import Path
import stat
import time
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

SUFFIX = '.log'
"""Files with this ending are journals, not databases."""

MAX_BYTES = 64 << 20
MAX_RECORDS = 200_000
"""A trial has about 25 records."""

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
            StorageInternalError: It is a symbolic link: Optuna waits for ever if its target is
                missing.
        """
        if Path(self._lock_file).is_symlink():
            raise StorageInternalError(
                f'the lock {self._lock_file} is a symbolic link, allowed: a file; remove it'
            )
        return super().acquire()


class TolerantJournal(JournalFileBackend):
    """Reads past blank lines, which some network file systems leave in files."""

    def __init__(self, file_path: str) -> None:
        """Use or create a file."""
        super().__init__(file_path, _Lock(file_path))
        self._path = file_path
        self._offsets = {0: 0}

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Yield the records from the given number on.

        Raises:
            StorageInternalError: A line is damaged, or the journal is too large.
        """
        _check_size(Path(self._path))
        start_s = time.thread_time()
        number = log_number_from if log_number_from in self._offsets else 0
        offset = self._offsets[number]
        with Path(self._path).open('rb') as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b'\n'):
                    return  # another worker is still writing it
                offset += len(line)
                if not line.strip():
                    continue
                number += 1
                _check_records(number, time.thread_time() - start_s)
                self._offsets[number] = offset
                if number > log_number_from:
                    yield self._parse(line, offset - len(line))

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


def _check_records(number: int, seconds: float) -> None:
    if number > MAX_RECORDS:
        raise _too_large(f'more than {MAX_RECORDS} records', f'{MAX_RECORDS}')
    if seconds > MAX_READ_S:
        raise _too_large(f'records that take more than {MAX_READ_S:g} s', f'{MAX_READ_S:g} s')


def _too_large(got: str, allowed: str) -> StorageInternalError:
    return StorageInternalError(
        f'the journal has {got}, allowed: at most {allowed}; name a database, or another journal'
    )
