"""A reader of rosbags that refuses bags which would take much memory or time to open."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from contextlib import closing
import os
from pathlib import Path, PurePath
import sqlite3
import sys
from types import MappingProxyType
from typing import Any

from p2d_node.bags.limits import (
    bag_bytes,
    Budget,
    check_bytes,
    limit_files,
    limit_profiles,
    limit_rosbags,
    max_content_bytes,
    max_index_bytes,
    MAX_MESSAGE_BYTES,
    max_records,
)
from p2d_node.bags.mcap_chunks import check_chunks, check_unindexed, ChunkMessages
from p2d_node.durable_files import read_file
from p2d_node.errors import quote
from p2d_node.sparse_files import stored_bytes
from p2d_node.sqlite_files import (
    check_rows_are_stored,
    check_side_files,
    JOURNAL,
    MAX_TEXT_BYTES,
    quoted,
    WAL,
)
from p2d_node.yaml_text import MAX_YAML_BYTES, parse_yaml
from rosbags.interfaces import Connection
from rosbags.rosbag2 import reader
from rosbags.rosbag2.storage_mcap import McapReader
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader

MAX_TOPICS = 4096
"""rosbags compares every topic of the metadata with every topic of every file."""

INFORMATION, TOPICS, FILES = (
    'rosbag2_bagfile_information',
    'topics_with_message_count',
    'relative_file_paths',
)
"""Keys of the metadata of a bag."""

TABLES = {
    'topics': MAX_TEXT_BYTES,
    'message_definitions': MAX_TEXT_BYTES,
    'messages': MAX_MESSAGE_BYTES,
}
"""Tables that rosbags reads, and the largest size of their values."""

KINDS = {
    'topics': {'id': 'integer', 'name': 'text', 'type': 'text'},
    'message_definitions': {'id': 'integer'},
    'messages': {'topic_id': 'integer', 'timestamp': 'integer', 'data': 'blob'},
}
"""Columns of each table, and the type of their values. SQLite stores any in any column."""

JOINED = {'topics': 'id', 'messages': 'topic_id'}
"""Columns by which messages get their topic. SQLite takes '01' for 1 as it compares columns that
are declared with two types, and uses no index for it."""


class _BagFile:
    """A file of its own, or one of a bag that may have been compressed as a whole.

    Attributes:
        bag_bytes: That the bag takes on the disk.
        kept: Of the bag, whose files are open together, for indexes or definitions.
    """

    bag_bytes = sys.maxsize
    kept: Budget | None = None
    path: Any

    def _file_bytes(self) -> int:
        return min(stored_bytes(Path(str(self.path))), self.bag_bytes)

    def _note_kept(self, num_bytes: int) -> None:
        if self.kept is not None:
            self.kept.spend(num_bytes)


class _Mcap(_BagFile, McapReader):
    def open(self) -> None:
        self._is_checked = False
        super().open()
        check_topics(len(self.connections))
        check_chunks(self.chunks, self._file_bytes())
        if not self.chunks:
            self._check_unindexed()

    def read_index(self) -> None:
        assert self.bio is not None
        num_bytes = self.bio.seek(0, os.SEEK_END) - self.data_end
        check_bytes('an index', num_bytes, max_index_bytes(self._file_bytes()))
        self._note_kept(num_bytes)
        super().read_index()

    def meta_scan(self) -> None:
        self._check_unindexed()
        super().meta_scan()

    def _check_unindexed(self) -> None:
        """Check the chunks of a file without an index, which are read for that; once."""
        assert self.bio is not None
        if not self._is_checked:
            self._note_kept(
                check_unindexed(self.bio, self.data_start, self.data_end, self._file_bytes())
            )
        self._is_checked = True

    def messages(
        self,
        connections: Collection[Connection],
        start: int | None = None,
        stop: int | None = None,
    ) -> Generator[tuple[Connection, int, bytes], None, None]:
        if not self.chunks:
            yield from super().messages(connections, start, stop)
            return
        assert self.bio is not None
        by_channel = {connection.id: connection for connection in connections}
        messages = ChunkMessages(self.bio, self.chunks, by_channel, self._file_bytes())
        for channel, time_ns, data in messages:
            if (start is None or start <= time_ns) and (stop is None or time_ns < stop):
                yield by_channel[channel], time_ns, data


class _Sqlite3(_BagFile, Sqlite3Reader):
    def open(self) -> None:
        _check_file(Path(str(self.path)))
        _check_database(Path(str(self.path)), max_records(self._file_bytes()))
        super().open()


class _Directory(reader.DirectoryReader):
    def open(self) -> None:
        folder = Path(str(self.path))
        _check_metadata(folder / 'metadata.yaml')
        self._num_bytes = num_bytes = bag_bytes(folder)
        what = 'indexes or definitions of all files'
        shared = {'bag_bytes': num_bytes, 'kept': Budget(what, max_index_bytes(num_bytes))}
        self.STORAGE_PLUGINS = {
            name: type(name, (reader_class,), shared)
            for name, reader_class in (('mcap', _Mcap), ('sqlite3', _Sqlite3))
        }
        with limit_files(num_bytes):
            super().open()

    def messages(
        self,
        connections: Collection[Connection],
        start: int | None = None,
        stop: int | None = None,
    ) -> Generator[tuple[Connection, int, bytes], None, None]:
        max_bytes = max_content_bytes(self._num_bytes)
        max_messages = max_records(self._num_bytes)
        num_bytes = 0
        messages = super().messages(connections, start, stop)
        for count, (connection, time_ns, data) in enumerate(messages, 1):
            # Each may be compressed by itself, or all together.
            num_bytes += len(data)
            check_bytes('messages, decompressed,', num_bytes, max_bytes)
            if count > max_messages:
                raise ValueError(f'it has more than {max_messages} messages')
            yield connection, time_ns, data


class LimitedReader(reader.Reader):
    """Reads the folder of a rosbag2, or one of its files."""

    STORAGE_PLUGINS = MappingProxyType({'dir': _Directory, '.mcap': _Mcap, '.db3': _Sqlite3})

    def __init__(self, path: Path) -> None:
        """Prepare to read `path`; see `rosbags.rosbag2.Reader`."""
        limit_rosbags()
        super().__init__(path)

    def open(self) -> None:
        """Open it."""
        with limit_profiles():
            super().open()


def _check_metadata(path: Path) -> None:
    """Check what rosbags takes from the metadata; it reads them by the same parser."""
    try:
        content = parse_yaml(read_file(path, MAX_YAML_BYTES).decode())
    except ValueError as err:
        raise ValueError(f'{path.name}: {err}') from err
    information = content.get(INFORMATION) if isinstance(content, dict) else None
    if not isinstance(information, dict):
        raise ValueError(f'{path.name} has no {INFORMATION}')
    topics, names = (_list_in(information, key, path.name) for key in (TOPICS, FILES))
    check_topics(len(topics))
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f'{path.name}: {FILES}: got {quote(names)}, allowed: texts')
    files = [path.parent / PurePath(name).name for name in names]
    for file in files:
        if not file.resolve().is_relative_to(path.parent.resolve()):
            raise ValueError(f'{quote(file.name)} is a link that leads out of its folder')
        _check_file(file)
    is_compressed = str(information.get('compression_mode')).lower() == 'file'
    if is_compressed and len({file.stem for file in files}) < len(files):
        raise ValueError(f'{path.name} names two files that are decompressed to one name')
    statuses = [file.stat() for file in files if file.exists()]
    if len({(status.st_dev, status.st_ino) for status in statuses}) < len(statuses):
        raise ValueError(f'{path.name} names a file twice')


def _list_in(information: dict[str, Any], key: str, name: str) -> list[Any]:
    content = information.get(key)
    if not isinstance(content, list):
        raise ValueError(f'{name}: {key}: got {quote(content)}, allowed: a list')
    return content


def _check_file(path: Path) -> None:
    """Check a file of a bag; rosbags says if it is missing."""
    if path.exists() and not path.is_file():
        raise ValueError(f'{quote(path.name)} is no plain file')
    # rosbags opens a database by a URL, in which these stand for other characters.
    if any(letter in str(path) for letter in '%?#'):
        raise ValueError(f'got the path {quote(str(path))}, allowed: without %, ? and #')


def check_topics(num_topics: int) -> None:
    """Raise `ValueError` if a bag has too many topics."""
    if num_topics > MAX_TOPICS:
        raise ValueError(f'got {num_topics} topics, allowed: at most {MAX_TOPICS}')


def _check_database(path: Path, max_messages: int) -> None:
    _check_is_closed(path)
    with closing(sqlite3.connect(f'{path.absolute().as_uri()}?immutable=1', uri=True)) as database:
        check_rows_are_stored(database, path, max_rows=max_messages + 2 * MAX_TOPICS)
        for table, max_bytes in TABLES.items():
            columns = database.execute(f'PRAGMA table_info({table})')
            declared = {name: kind for _, name, kind, *_ in columns}
            _check_sizes(database, table, declared, max_bytes)
            _check_kinds(database, table, declared)
            if declared and table != 'messages':
                _check_ids(database, table)


def _check_is_closed(path: Path) -> None:
    """Check that nothing is written beside a database, which rosbags would not read."""
    check_side_files(path)
    for suffix in (JOURNAL, WAL):
        beside = path.with_name(f'{path.name}{suffix}')
        if beside.exists() and beside.stat().st_size:
            raise ValueError(
                f'{quote(beside.name)} is beside it, as if its recorder was ended before it could '
                'close it; if you trust where it comes from, complete it with '
                '`sqlite3 ./DATABASE vacuum`'
            )


def _check_sizes(
    database: sqlite3.Connection, table: str, names: Collection[str], max_bytes: int
) -> None:
    """Check the sizes of all values of a table, of which SQLite reads the texts only."""
    lengths = ', '.join(f'max(length({quoted(name)}))' for name in names)
    if lengths:
        for longest in database.execute(f'SELECT {lengths} FROM {table}').fetchone():
            check_bytes(f'a value in {table}', longest or 0, max_bytes)


def _check_kinds(database: sqlite3.Connection, table: str, declared: Mapping[str, str]) -> None:
    """Check the types of the values of a table, and the declared one of its joined column."""
    for column, kind in KINDS[table].items():
        if column not in declared:
            continue  # rosbags says what is missing
        if column == JOINED.get(table) and declared[column].upper() != 'INTEGER':
            got = quote(declared[column])
            raise ValueError(f'{table}.{column}: got the type {got}, allowed: INTEGER')
        ((num_others,),) = database.execute(
            f"SELECT count(*) FROM {table} NOT INDEXED WHERE typeof({column}) != '{kind}'"
        )
        if num_others:
            raise ValueError(
                f'got {num_others} values of {table}.{column}, allowed: of type {kind}'
            )


def _check_ids(database: sqlite3.Connection, table: str) -> None:
    """Check that a table has few rows, each with its own id: messages are joined by it."""
    ((count, num_ids),) = database.execute(
        f'SELECT count(*), count(DISTINCT id) FROM {table} NOT INDEXED'
    )
    check_topics(count)
    if num_ids < count:
        raise ValueError(f'got {count} rows of {table} with {num_ids} ids, allowed: one each')
