"""A reader of rosbags that refuses bags which would take much memory or time to open."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing, suppress
from itertools import accumulate
from pathlib import Path
import sqlite3
from types import MappingProxyType

from p2d_node.bags.limits import check_bytes, limit_rosbags
from p2d_node.durable_files import read_file
from p2d_node.yaml_text import MAX_YAML_BYTES, parse_yaml
from rosbags.rosbag2 import reader
from rosbags.rosbag2.storage_mcap import ChunkInfo, McapReader
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader

MAX_TOPICS = 4096
"""rosbags compares every topic of the metadata with every topic of every file."""

MAX_OVERLAP_BYTES = 512 << 20
"""Of the chunks of an MCAP file that share a moment: they are in memory together."""

ODD_OBJECTS = """
SELECT name FROM sqlite_master WHERE NOT (
  type IN ('table', 'index') AND rootpage > 0
  AND (sql IS NULL OR sql LIKE 'CREATE TABLE %' OR sql LIKE 'CREATE % INDEX %'
       OR sql LIKE 'CREATE INDEX %'))
"""
"""Views, triggers and virtual tables: they compute rows that are not in the file."""

TABLES = ('schema', 'metadata', 'topics', 'message_definitions', 'messages')


class _Mcap(McapReader):
    def open(self) -> None:
        super().open()
        _check_topics(len(self.connections))
        check_overlap(self.chunks)


class _Sqlite3(Sqlite3Reader):
    def open(self) -> None:
        _check_database(Path(str(self.path)))
        super().open()


class _Directory(reader.DirectoryReader):
    STORAGE_PLUGINS = MappingProxyType({'mcap': _Mcap, 'sqlite3': _Sqlite3})

    def open(self) -> None:
        _check_metadata(Path(str(self.path)) / 'metadata.yaml')
        super().open()


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
        _check_topics(len(information['topics_with_message_count']))
        names = information['relative_file_paths']
        if len(set(names)) < len(names):
            raise ValueError(f'{path.name} names a file twice')


def _check_topics(num_topics: int) -> None:
    if num_topics > MAX_TOPICS:
        raise ValueError(f'got {num_topics} topics, allowed: at most {MAX_TOPICS}')


def check_overlap(chunks: Collection[ChunkInfo]) -> None:
    """Raise `ValueError` if too many bytes of chunks are in memory at one time.

    A chunk is decompressed when its first message is due, and freed after its last message.
    """
    starts = [(chunk.message_start_time, chunk.uncompressed_size) for chunk in chunks]
    ends = [(_end_of(chunk), -chunk.uncompressed_size) for chunk in chunks]
    held = accumulate(num_bytes for _, num_bytes in sorted(starts + ends))
    check_bytes('chunks that overlap in time', max(held, default=0), MAX_OVERLAP_BYTES)


def _end_of(chunk: ChunkInfo) -> int:
    return max(chunk.message_start_time, chunk.message_end_time) + 1


def _check_database(path: Path) -> None:
    with closing(sqlite3.connect(f'{path.absolute().as_uri()}?immutable=1', uri=True)) as database:
        odd = database.execute(ODD_OBJECTS).fetchone()
        if odd is not None:
            raise ValueError(f'got {odd[0]!r}, allowed: tables and indices that hold their rows')
        for table in TABLES:
            columns = database.execute(f'PRAGMA table_xinfo({table})').fetchall()
            if any(hidden for *_, hidden in columns):
                raise ValueError(f'got a computed column of {table}, allowed: columns in the file')
            if table in ('topics', 'message_definitions') and columns:
                ((count,),) = database.execute(f'SELECT count(*) FROM {table}')
                _check_topics(count)
