"""Answers and judgements on disk: JSON lines that grow as they come, whatever ends the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import fcntl
import itertools
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from p2d_node.errors import ConfigError


class RecordFile:
    """One JSON object with an `id` per line, after a line that says what made them.

    `done` holds them by id. Use it from one thread, as a context manager: while
    it is open no other process can open it.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any]) -> None:
        """Open the file, or begin it; a last line that was cut short is dropped.

        Raises:
            ConfigError: Not such a file, one of another model, data or settings, one that cannot
                be written, or one that another run has open.
        """
        self.done: dict[str, dict[str, Any]] = {}
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what the disk refused must not be tried again on close.
            self._file = path.open('a+b', buffering=0)
        except OSError as err:
            raise self._cannot_be_written(err) from err
        try:
            self._lock()
            self._read(made_by)
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
        self._write(records)
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

    def _read(self, made_by: Mapping[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b'\n') + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        if not whole:
            # New, or its run was ended before the first line was whole.
            self._write([made_by])
            return
        try:
            head, *records = [json.loads(line) for line in whole.splitlines()]
            made_before = dict(head)
            self.done = {record['id']: record for record in records}
        except (ValueError, KeyError, TypeError) as err:
            raise ConfigError(
                f'{self._path}: not a file of p2d evaluate: {err}; name another with --out'
            ) from err
        made_now = json.loads(json.dumps(made_by))  # as the file has it: tuples are lists
        for name in sorted(made_now.keys() | made_before.keys()):
            before, now = made_before.get(name), made_now.get(name)
            if before != now:
                raise ConfigError(
                    f'{self._path}: it was made with {name} {before!r}, now it is '
                    f'{now!r}; name another file with --out'
                )

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        content = ''.join(f'{json.dumps(record)}\n' for record in records).encode()
        try:
            while content:
                content = content[self._file.write(content) :]
            os.fsync(self._file.fileno())
        except OSError as err:
            raise self._cannot_be_written(err) from err

    def _cannot_be_written(self, err: OSError) -> ConfigError:
        return ConfigError(
            f'{self._path}: cannot be written: {err.strerror}; name another folder with --out'
        )
