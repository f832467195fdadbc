"""A file of answers or judgements: JSON lines, each on disk before it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
import errno
import io
import itertools
import json
import os
from pathlib import Path
import stat
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from p2d_node.durable_files import check_values, MAX_DATA_BYTES, write_faults
from p2d_node.errors import ConfigError, quote

OTHER_FOLDER = 'choose another output folder'
"""Next step if the file cannot be used."""

MAX_NUMBER = 1 << 53
"""Of numbers of tokens and times in a record."""


class RecordFile:
    """A file with one JSON object with an `id` per line, after a line with their provenance.

    Use it from one thread, as a context manager. While it is open, no other process can open it.

    Attributes:
        done: The records by id.
        path: The file.
    """

    def __init__(
        self, path: Path, provenance: Mapping[str, Any], fields: Mapping[str, Any] | None = None
    ) -> None:
        """Open or create the file; an incomplete last line is removed.

        Args:
            path: The file; its folder is created.
            provenance: Model, data and settings of the records, JSON data; it is written with
                the first record.
            fields: Fields of a record beside its `id`: name to type.

        Raises:
            ConfigError: The file is damaged, has another provenance, cannot be written, or is
                open in another run.
        """
        self.done: dict[str, dict[str, Any]] = {}
        self.path = path
        self._lock_path = path.with_name(f'.{path.name}.lock')
        self._stack = ExitStack()
        self._head = json.dumps(provenance)
        self._fields = {'id': str, **(fields or {})}
        with self._write_faults():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock()
        with self._stack.pop_all() as stack:
            with self._write_faults():
                self._file = stack.enter_context(_open_plain(path))
                self._read()
            self._stack = stack.pop_all()

    def __enter__(self) -> RecordFile:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; another run may then open it. Without a record it is removed."""
        if not self.done and not self._file.seek(0, os.SEEK_END):
            self.path.unlink(missing_ok=True)
            self._lock_path.unlink(missing_ok=True)
        self._stack.close()

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Add records with new ids; they are on disk when this returns.

        Raises:
            ConfigError: They cannot be written.
        """
        lines = [json.dumps(record) for record in records]
        is_new = self._file.seek(0, os.SEEK_END) == 0
        self._write([self._head, *lines] if is_new else lines)
        self.done |= {record['id']: record for record in records}

    def mark(self) -> tuple[int, int]:
        """Return the current end of the file, for `go_back`."""
        return self._file.seek(0, os.SEEK_END), len(self.done)

    def go_back(self, mark: tuple[int, int]) -> None:
        """Remove the records that were appended after `mark`."""
        size, count = mark
        self._file.truncate(size)
        self.done = dict(itertools.islice(self.done.items(), count))

    def _lock(self) -> None:
        try:
            self._stack.enter_context(FileLock(self._lock_path, timeout=0))
        except Timeout as err:
            raise ConfigError(
                f'{self.path}: another run writes there; wait for its end, or {OTHER_FOLDER}'
            ) from err

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read(MAX_DATA_BYTES + 1)
        if len(content) > MAX_DATA_BYTES:
            raise _too_large(f'more than {MAX_DATA_BYTES}')
        whole = content[: content.rfind(b'\n') + 1]
        # Without a complete line it is new, or its run ended while it wrote the first line.
        if whole or not self._head.encode().startswith(content):
            self._load(whole)
        if len(whole) < len(content):
            self._file.truncate(len(whole))

    def _load(self, content: bytes) -> None:
        """Check the lines of an earlier run one by one, and keep its records."""
        try:
            check_values(content)
        except ValueError as err:
            raise self._damaged(1, str(err)) from err
        lines = io.BytesIO(content)
        before = self._parse(lines.readline() or b'null', 1)
        done: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(lines, 2):
            record = self._parse(line, number)
            self._check(record, number)
            if record['id'] in done:
                raise self._damaged(number, f'the id {quote(record["id"])} occurs twice')
            done[record['id']] = record
        now = json.loads(self._head)  # as in the file: tuples become lists
        for name in sorted(now.keys() | before.keys()):
            if before.get(name) != now.get(name):
                raise ConfigError(
                    f'{self.path}: it was made with {name} {quote(before.get(name))}, now it '
                    f'is {quote(now.get(name))}; {OTHER_FOLDER}'
                )
        self.done = done

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            content = json.loads(line, object_pairs_hook=_to_dict)
        except (ValueError, RecursionError) as err:
            raise self._damaged(number, str(err)) from err
        if not isinstance(content, dict):
            raise self._damaged(number, 'not a JSON object')
        return content

    def _check(self, record: Mapping[str, Any], number: int) -> None:
        for name, kind in self._fields.items():
            if name not in record or not isinstance(record[name], kind):
                needed = getattr(kind, '__name__', kind)
                who = quote(record.get('id'))
                raise self._damaged(number, f'the record {who} has no {name} of type {needed}')
            value = record[name]
            if isinstance(value, (int, float)) and not 0 <= value <= MAX_NUMBER:
                reason = f'the record {quote(record["id"])} has {name} {quote(value)}'
                raise self._damaged(number, f'{reason}, allowed: 0 to {MAX_NUMBER}')

    def _damaged(self, number: int, reason: str) -> ConfigError:
        return ConfigError(
            f'{self.path}: line {number}: not a file of p2d evaluate: {reason}; {OTHER_FOLDER}'
        )

    def _write(self, lines: Sequence[str]) -> None:
        content = ''.join(f'{line}\n' for line in lines).encode()
        with self._write_faults():
            while content:
                content = content[self._file.write(content) :]
            os.fsync(self._file.fileno())

    def _write_faults(self) -> AbstractContextManager[None]:
        return write_faults(f'{self.path}:', OTHER_FOLDER)


def _to_dict(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError('a name occurs twice in an object')
    return content


def _open_plain(path: Path) -> io.FileIO:
    """Open or create a file to read and append; links, symbolic or hard, and devices are refused.

    Raises:
        OSError: It cannot be opened, is no plain file, or is too large.
    """
    if path.is_symlink():  # O_NOFOLLOW refuses it too, with a text about too many links
        raise OSError(errno.ELOOP, 'got a symbolic link, allowed: a file', str(path))
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, 'got a device or a pipe, allowed: a file', str(path))
        if status.st_size > MAX_DATA_BYTES:
            raise _too_large(str(status.st_size))
        if status.st_nlink > 1:
            reason = 'got a hard link, allowed: a file with one name'
            raise OSError(errno.EMLINK, reason, str(path))
        # Unbuffered: a failed write must not be repeated on close.
        return io.FileIO(descriptor, 'a+')
    except BaseException:
        os.close(descriptor)
        raise


def _too_large(got: str) -> OSError:
    return OSError(errno.EFBIG, f'got {got} bytes, allowed: at most {MAX_DATA_BYTES}')
