"""A reader of rosbags that refuses bags which would take much memory or time to open."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from contextlib import closing, suppress
from itertools import accumulate, pairwise
from pathlib import Path
import sqlite3
import struct
from types import MappingProxyType
from typing import BinaryIO, Protocol

from p2d_node.bags.limits import (
    check_bytes,
    limit_rosbags,
    max_content_bytes,
    MAX_MESSAGE_BYTES,
    RECORD,
)
from p2d_node.durable_files import read_file
from p2d_node.errors import quote
from p2d_node.sparse_files import stored_bytes
from p2d_node.sqlite_files import check_rows_are_stored, MAX_TEXT_BYTES
from p2d_node.yaml_text import MAX_YAML_BYTES, parse_yaml
from rosbags.interfaces import Connection
from rosbags.rosbag2 import reader
from rosbags.rosbag2.storage_mcap import McapReader
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader

MAX_TOPICS = 4096
"""rosbags compares every topic of the metadata with every topic of every file."""

TABLES = {
    'topics': MAX_TEXT_BYTES,
    'message_definitions': MAX_TEXT_BYTES,
    'messages': MAX_MESSAGE_BYTES,
}
"""Tables that rosbags reads, and the largest size of their values."""

MAX_OVERLAP_BYTES = 512 << 20
"""Of the chunks of an MCAP file that share a moment: they are in memory together."""


CHUNK = 6
CHUNK_START = struct.Struct('<BQQQQ')
"""Start of a record of a chunk: its kind and length, first and last log time, and size."""


class _Chunk(Protocol):
    """What an index says about a chunk: log times in nanoseconds, sizes and place in the file."""

    @property
    def message_start_time(self) -> int: ...

    @property
    def message_end_time(self) -> int: ...

    @property
    def uncompressed_size(self) -> int: ...

    @property
    def chunk_start_offset(self) -> int: ...

    @property
    def chunk_length(self) -> int: ...

    @property
    def compressed_size(self) -> int: ...


class _Mcap(McapReader):
    def open(self) -> None:
        super().open()
        check_topics(len(self.connections))
        check_chunks(self.chunks, stored_bytes(Path(str(self.path))))
        if not self.chunks:
            self._check_unindexed()

    def meta_scan(self) -> None:
        self._check_unindexed()
        super().meta_scan()

    def _check_unindexed(self) -> None:
        """Check what the chunks of a file without an index have together; none is read."""
        assert self.bio is not None
        sizes = _chunk_sizes(self.bio, self.data_start, self.data_end)
        _check_sum(sum(sizes), stored_bytes(Path(str(self.path))))


class _Sqlite3(Sqlite3Reader):
    def open(self) -> None:
        _check_file(Path(str(self.path)))
        _check_database(Path(str(self.path)))
        super().open()


class _Directory(reader.DirectoryReader):
    STORAGE_PLUGINS = MappingProxyType({'mcap': _Mcap, 'sqlite3': _Sqlite3})

    def open(self) -> None:
        _check_metadata(Path(str(self.path)) / 'metadata.yaml')
        super().open()

    def messages(
        self,
        connections: Collection[Connection],
        start: int | None = None,
        stop: int | None = None,
    ) -> Generator[tuple[Connection, int, bytes], None, None]:
        folder = Path(str(self.path))
        files = [path for path in folder.iterdir() if not path.is_symlink()]
        max_bytes = max_content_bytes(sum(stored_bytes(path) for path in files))
        num_bytes = 0
        for connection, time_ns, data in super().messages(connections, start, stop):
            # Each may be compressed by itself.
            num_bytes += len(data)
            check_bytes('messages, decompressed,', num_bytes, max_bytes)
            yield connection, time_ns, data


class LimitedReader(reader.Reader):
    """Reads the folder of a rosbag2, or one of its files."""

    STORAGE_PLUGINS = MappingProxyType({'dir': _Directory, '.mcap': _Mcap, '.db3': _Sqlite3})

    def __init__(self, path: Path) -> None:
        """Prepare to read `path`; see `rosbags.rosbag2.Reader`."""
        limit_rosbags()
        super().__init__(path)


def _check_metadata(path: Path) -> None:
    try:
        content = parse_yaml(read_file(path, MAX_YAML_BYTES))
    except ValueError as err:
        raise ValueError(f'{path.name}: {err}') from err
    with suppress(LookupError, TypeError):  # rosbags says what is missing or of a wrong type
        information = content['rosbag2_bagfile_information']
        check_topics(len(information['topics_with_message_count']))
        names = information['relative_file_paths']
        if len(set(names)) < len(names):
            raise ValueError(f'{path.name} names a file twice')
        for name in names:
            _check_file(path.parent / Path(name).name)


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


def check_chunks(chunks: Collection[_Chunk], file_bytes: int) -> None:
    """Check the index of an MCAP file.

    A chunk is decompressed when its first message is due, and freed after its last message.

    Args:
        chunks: What the index says.
        file_bytes: That the file takes on the disk.

    Raises:
        ValueError: Bytes of the file belong to two chunks, which would be read again for each; or
            too many bytes of chunks are in memory at one time, or in the file.
    """
    places = sorted((chunk.chunk_start_offset, _end_in_file(chunk)) for chunk in chunks)
    for (_, end), (start, _) in pairwise(places):
        if start < end:
            raise ValueError(f'its index names two chunks that share the byte {start}')
    starts = [(chunk.message_start_time, chunk.uncompressed_size) for chunk in chunks]
    ends = [(_end_of(chunk), -chunk.uncompressed_size) for chunk in chunks]
    held = accumulate(num_bytes for _, num_bytes in sorted(starts + ends))
    check_bytes('chunks that overlap in time', max(held, default=0), MAX_OVERLAP_BYTES)

    _check_sum(sum(chunk.uncompressed_size for chunk in chunks), file_bytes)


def _check_sum(num_bytes: int, file_bytes: int) -> None:
    check_bytes('chunks, decompressed,', num_bytes, max_content_bytes(file_bytes))


def _chunk_sizes(file: BinaryIO, start: int, end: int) -> Iterator[int]:
    """Yield the decompressed sizes that the chunks between two places of an MCAP file claim."""
    while start < end:
        file.seek(start)
        head = file.read(CHUNK_START.size)
        if len(head) < CHUNK_START.size:
            return
        kind, length, _, _, size = CHUNK_START.unpack(head)
        if kind == CHUNK:
            yield size
        start += RECORD.size + length


def _end_in_file(chunk: _Chunk) -> int:
    return chunk.chunk_start_offset + max(1, chunk.chunk_length, chunk.compressed_size)


def _end_of(chunk: _Chunk) -> int:
    return max(chunk.message_start_time, chunk.message_end_time) + 1


def _check_database(path: Path) -> None:
    with closing(sqlite3.connect(f'{path.absolute().as_uri()}?immutable=1', uri=True)) as database:
        check_rows_are_stored(database)
        for table, max_bytes in TABLES.items():
            names = [name for _, name, *_ in database.execute(f'PRAGMA table_info({table})')]
            _check_sizes(database, table, names, max_bytes)
            if names and table != 'messages':
                _check_ids(database, table)


def _check_sizes(
    database: sqlite3.Connection, table: str, names: Collection[str], max_bytes: int
) -> None:
    """Check the sizes of all values of a table, of which SQLite reads the texts only."""
    for name in names:
        column = name.replace('"', '""')
        ((longest,),) = database.execute(f'SELECT max(length("{column}")) FROM {table}')
        check_bytes(f'a value in {table}', longest or 0, max_bytes)


def _check_ids(database: sqlite3.Connection, table: str) -> None:
    """Check that a table has few rows, each with its own id: messages are joined by it."""
    ((count, num_ids),) = database.execute(f'SELECT count(*), count(DISTINCT id) FROM {table}')
    check_topics(count)
    if num_ids < count:
        raise ValueError(f'got {count} rows of {table} with {num_ids} ids, allowed: one each')
