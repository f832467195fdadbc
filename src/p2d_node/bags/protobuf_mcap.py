"""Reads the images of an MCAP file that ROS did not record, such as those of nuscenes2mcap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import os
from pathlib import Path
import struct

from mcap.reader import SeekingReader
from mcap.records import Chunk
from mcap.stream_reader import StreamReader
from mcap.summary import Summary
from p2d_node.bags.foxglove import converter_of, ROS_TYPES
from p2d_node.bags.limited_reader import check_topics
from p2d_node.bags.limits import check_bytes, max_index_bytes, MAX_MESSAGE_BYTES
from p2d_node.bags.mcap_chunks import check_chunks, ChunkMessages
from p2d_node.sparse_files import stored_bytes
from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)

FOOTER = struct.Struct('<9xQ20x')
"""End of an MCAP file, with the place of its index; 0: it has none."""

MAX_SCHEMAS = 16
"""Of images and calibrations, each of which is parsed; nuscenes2mcap writes one of each."""


class ProtobufMcapReader:
    """Gives the images and calibrations of the file as ROS messages; not thread-safe.

    It has the part of the interface of `rosbags.rosbag2.Reader` that `BagReader` uses.

    Attributes:
        connections: The topics. Those with messages that have no counterpart in ROS keep the name
            of their schema as type, and their messages are left out.
        message_count: Number of messages, of all topics.
        start_time: Log time of the first message, nanoseconds since the epoch.
        duration: Time from the first to the last message, nanoseconds.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            OSError: The file cannot be opened.
            ValueError: It has no index, or is too large to read.
        """
        self._file = path.open('rb')
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        self._file_bytes = stored_bytes(Path(self._file.name))
        self._check_index()
        reader = SeekingReader(self._file, record_size_limit=MAX_MESSAGE_BYTES)
        summary = reader.get_summary()
        if summary is None or summary.statistics is None or not summary.chunk_indexes:
            raise ValueError('it has no index; write one with: mcap recover')
        check_topics(len(summary.channels))
        check_chunks(summary.chunk_indexes, self._file_bytes)
        self._chunks = summary.chunk_indexes
        self.message_count = summary.statistics.message_count
        self.start_time = summary.statistics.message_start_time
        self.duration = summary.statistics.message_end_time - self.start_time
        self._converters = {}
        self._connections = {}
        converters = _converters_of(summary)
        for channel in summary.channels.values():
            schema = summary.schemas.get(channel.schema_id)
            name = '' if schema is None else schema.name
            self._connections[channel.id] = self._connection(channel.id, channel.topic, name)
            if channel.schema_id in converters:
                self._converters[channel.id] = converters[channel.schema_id]
        if not self._converters:
            raise ValueError(f'it has no messages of ROS 2, and none of {" or ".join(ROS_TYPES)}')

    def _check_index(self) -> None:
        """Check the size of the index, which is read as a whole, and that it holds no chunk."""
        num_bytes = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, num_bytes - FOOTER.size))
        footer = self._file.read(FOOTER.size)
        self._file.seek(0)
        if len(footer) < FOOTER.size or not (start := FOOTER.unpack(footer)[0]):
            return
        check_bytes('an index', num_bytes - start, max_index_bytes(self._file_bytes))
        self._file.seek(start)
        # SeekingReader decompresses a chunk in the index, without a limit.
        index = StreamReader(self._file, skip_magic=True, emit_chunks=True).records
        if any(isinstance(record, Chunk) for record in index):
            raise ValueError('got a chunk in the index; write another with: mcap recover')
        self._file.seek(0)

    def _connection(self, id: int, topic: str, schema: str) -> Connection:
        return Connection(
            id=id,
            topic=topic,
            msgtype=ROS_TYPES.get(schema, schema),
            msgdef=MessageDefinition(MessageDefinitionFormat.NONE, ''),
            digest='',
            msgcount=0,
            ext=ConnectionExtRosbag2('cdr', []),
            owner=self,
        )

    @property
    def connections(self) -> list[Connection]:
        """Return the topics."""
        return list(self._connections.values())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def messages(self) -> Iterator[tuple[Connection, int, memoryview]]:
        """Yield topic, log time and CDR bytes, in the order of log times.

        Raises:
            ValueError: The file is damaged.
        """
        messages = ChunkMessages(self._file, self._chunks, self._converters, self._file_bytes)
        for channel, log_time_ns, data in messages:
            yield self._connections[channel], log_time_ns, self._converters[channel](data)


def _converters_of(summary: Summary) -> dict[int, Callable[[bytes], memoryview]]:
    """Return number to converter of the schemas that channels have; each is parsed once."""
    numbers = {channel.schema_id for channel in summary.channels.values()}
    schemas = {n: s for n, s in summary.schemas.items() if n in numbers and s.name in ROS_TYPES}
    if len(schemas) > MAX_SCHEMAS:
        raise ValueError(f'got {len(schemas)} schemas of images, allowed: at most {MAX_SCHEMAS}')
    return {number: converter_of(schema) for number, schema in schemas.items()}
