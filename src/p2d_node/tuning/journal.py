"""A study in a journal file, for machines that share a folder but have no database."""

from __future__ import annotations

from collections.abc import Iterator
import json
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

SUFFIX = '.log'
"""Files with this ending are journals, not databases."""


def open_journal(path: Path) -> JournalStorage:
    """Open or create a journal.

    Raises:
        OSError: The file cannot be read or created.
        StorageInternalError: A line is damaged.
    """
    return JournalStorage(TolerantJournal(str(path)))


class TolerantJournal(JournalFileBackend):
    """Reads past blank lines, which some network file systems leave in files."""

    def __init__(self, file_path: str) -> None:
        """Use or create a file."""
        super().__init__(file_path)
        self._path = file_path
        self._offsets = {0: 0}

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Yield the records from the given number on.

        Raises:
            StorageInternalError: A line is damaged.
        """
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
