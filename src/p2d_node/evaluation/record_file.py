"""Answers and judgements on disk: JSON lines that grow as they come, whatever ends the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
import fcntl
import itertools
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from p2d_node.durable_files import write_faults
from p2d_node.errors import ConfigError


class RecordFile:
    """One JSON object with an `id` per line, after a line that says what made them.

    `done` holds them by id. Use it from one thread, as a context manager: while
    it is open no other process can open it.
    """

    def __init__(
        self, path: Path, made_by: Mapping[str, Any], fields: Mapping[str, Any] | None = None
    ) -> None:
        """Open the file, or begin it; a last line that was cut short is dropped.

        Args:
            path: The file; its folder is made.
            made_by: What made the records, JSON data; it is written with the first of them.
            fields: What a record has beside its `id`: name to type.

        Raises:
            ConfigError: Not such a file, one of another model, data or settings, one that cannot
                be written, or one that another run has open.
        """
        self.done: dict[str, dict[str, Any]] = {}
        self._path = path
        self._head = json.dumps(made_by)
        self._fields = {'id': str, **(fields or {})}
        with self._write_faults():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what the disk refused must not be tried again on close.
            self._file = path.open('a+b', buffering=0)
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> RecordFile:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; another run may then open it."""
        self._file.close()

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Add records of new ids; they are on disk when this returns.

        Raises:
            ConfigError: The disk does not take them.
        """
        lines = [json.dumps(record) for record in records]
        is_new = self._file.seek(0, os.SEEK_END) == 0
        self._write([self._head, *lines] if is_new else lines)
        self.done |= {record['id']: record for record in records}

    def mark(self) -> tuple[int, int]:
        """Return the place after what is there now, for `go_back`."""
        return self._file.seek(0, os.SEEK_END), len(self.done)

    def go_back(self, mark: tuple[int, int]) -> None:
        """Forget what was appended after `mark`."""
        size, count = mark
        self._file.truncate(size)
        self.done = dict(itertools.islice(self.done.items(), count))

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise ConfigError(
                f'{self._path}: another run writes there; wait for its end, or name '
                'another folder with --out'
            ) from err

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b'\n') + 1]
        # Without a whole line it is new, or its run was ended while it wrote the first.
        if whole or not self._head.encode().startswith(content):
            self._take(whole.splitlines())
        if len(whole) < len(content):
            self._file.truncate(len(whole))

    def _take(self, lines: Sequence[bytes]) -> None:
        """Check what an earlier run has written, and keep its records."""
        try:
            made_before, *records = [json.loads(line) for line in lines] or [None]
            if not isinstance(made_before, dict):
                raise TypeError('its first line does not say what made it')
            for record in records:
                self._check(record)
        except (ValueError, TypeError, RecursionError) as err:
            raise ConfigError(
                f'{self._path}: not a file of p2d evaluate: {err}; name another folder with --out'
            ) from err
        made_now = json.loads(self._head)  # as the file has it: tuples are lists
        for name in sorted(made_now.keys() | made_before.keys()):
            before, now = made_before.get(name), made_now.get(name)
            if before != now:
                raise ConfigError(
                    f'{self._path}: it was made with {name} {before!r}, now it is '
                    f'{now!r}; name another folder with --out'
                )
        self.done = {record['id']: record for record in records}

    def _check(self, record: Any) -> None:
        fields = record if isinstance(record, dict) else {}
        for name, kind in self._fields.items():
            if name not in fields or not isinstance(fields[name], kind):
                needed = getattr(kind, '__name__', kind)
                raise TypeError(
                    f'the record {str(fields.get("id"))[:80]} has no {name} of type {needed}'
                )

    def _write(self, lines: Sequence[str]) -> None:
        content = ''.join(f'{line}\n' for line in lines).encode()
        with self._write_faults():
            while content:
                content = content[self._file.write(content) :]
            os.fsync(self._file.fileno())

    def _write_faults(self) -> AbstractContextManager[None]:
        return write_faults(f'{self._path}:', 'name another folder with --out')
