"""Reads the chunks of an MCAP file, which may be small in the file and large in memory."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator
import heapq
from itertools import accumulate, pairwise
import struct
from typing import BinaryIO, NamedTuple, Protocol
import zlib

from p2d_node.bags.limits import (
    check_bytes,
    decompress_chunk,
    find_records,
    max_content_bytes,
    max_index_bytes,
    MAX_RECORDS,
    max_records,
    read_limited,
    RECORD,
)

MAX_OVERLAP_BYTES = 512 << 20
"""Of the chunks of a file that share a moment: they are in memory together."""

MESSAGE, CHUNK = 5, 6
DEFINITIONS = 3, 4
"""Schemas and channels, which are kept while the file is open."""

MESSAGE_START = struct.Struct('<HIQQ')
"""Start of a message: its channel, number, log time and publishing time, nanoseconds."""

CHUNK_START = struct.Struct('<BQQQQII')
"""Start of a record of a chunk: its kind and length, first and last log time, decompressed size,
checksum, and the length of the name of its compression."""

LENGTH = struct.Struct('<Q')
MAX_NAME_CHARACTERS = 16
"""Of the name of a compression: zstd or lz4."""


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


class ChunkMessages:
    """Gives the messages of the chunks of a file, in the order of their log times; once.

    A chunk is decompressed when its first message is due, and freed after its last message.
    """

    def __init__(
        self,
        file: BinaryIO,
        chunks: Collection[_Chunk],
        channels: Container[int],
        file_bytes: int,
    ) -> None:
        """Prepare to read.

        Args:
            file: The file, open for reading.
            chunks: What its index says; see `check_chunks`.
            channels: Numbers of the channels whose messages are wanted.
            file_bytes: That the file takes on the disk.
        """
        self._file, self._chunks, self._channels = file, chunks, channels
        self._max_records = max_records(file_bytes)
        self._num_records = self._num_held = 0

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield channel, log time (ns) and data.

        Raises:
            ValueError: A chunk is damaged or not as the index says, or there are too many records.
        """
        for log_time_ns, _, channel, data in heapq.merge(*map(self._messages_of, self._chunks)):
            if data is not None:
                yield channel, log_time_ns, data

    def _messages_of(self, index: _Chunk) -> Iterator[tuple[int, int, int, bytes | None]]:
        """Yield log time, place of the chunk, channel and data; the first has no data."""
        place = index.chunk_start_offset
        yield index.message_start_time, place, 0, None
        content = self._read(index)
        messages = sorted(self._times_and_places(index, content))
        _check_records(self._num_records, self._max_records)
        self._num_held += len(messages)
        if self._num_held > MAX_RECORDS:
            raise ValueError(f'chunks that overlap in time have more than {MAX_RECORDS} messages')
        for log_time_ns, at in messages:
            _, length = RECORD.unpack_from(content, at)
            start, end = at + RECORD.size, at + RECORD.size + length
            channel, *_ = MESSAGE_START.unpack_from(content, start)
            yield log_time_ns, place, channel, content[start + MESSAGE_START.size : end]
        self._num_held -= len(messages)

    def _times_and_places(self, index: _Chunk, content: bytes) -> Iterator[tuple[int, int]]:
        """Yield log time and place of the wanted messages of a chunk, and count its records."""
        at = 0
        while at < len(content):
            self._num_records += 1
            kind, length = RECORD.unpack_from(content, at)
            if length > len(content) - at - RECORD.size:
                raise ValueError('a record is longer than its chunk')
            if kind == MESSAGE:
                if length < MESSAGE_START.size:
                    raise ValueError(f'got a message of {length} bytes, which has no log time')
                channel, _, log_time_ns, _ = MESSAGE_START.unpack_from(content, at + RECORD.size)
                # Else the chunks that are in memory together would not be those of the index.
                if not index.message_start_time <= log_time_ns <= index.message_end_time:
                    raise ValueError(
                        f'a message of {log_time_ns} ns is not in the times of its chunk'
                    )
                if channel in self._channels:
                    yield log_time_ns, at
            at += RECORD.size + length

    def _read(self, index: _Chunk) -> bytes:
        """Return the content of a chunk."""
        head = _read_head(self._file, index.chunk_start_offset)
        sizes = index.uncompressed_size, index.compressed_size
        if (head.size, head.compressed_size) != sizes:
            raise ValueError('the index is not that of the chunks')
        return _read_content(self._file, head)


def check_chunks(chunks: Collection[_Chunk], file_bytes: int) -> None:
    """Check the index of an MCAP file.

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


def check_unindexed(file: BinaryIO, start: int, end: int, file_bytes: int) -> int:
    """Check what an MCAP file without an index, and its chunks, have together.

    Args:
        file: The file, open for reading.
        start: Where its first chunk may begin.
        end: Where the last one ends.
        file_bytes: That the file takes on the disk.

    Returns:
        The number of bytes of its definitions.

    Raises:
        ValueError: They have too many bytes, which is found before any is read, or records, or
            bytes of definitions.
    """
    allowed = max_records(file_bytes)
    max_definition_bytes = max_index_bytes(file_bytes)
    places: list[int] = []
    num_records = num_bytes = definition_bytes = 0

    def count(kind: int, length: int) -> None:
        nonlocal num_records, definition_bytes
        num_records += 1
        _check_records(num_records, allowed)
        if kind in DEFINITIONS:
            definition_bytes += length
            check_bytes('definitions', definition_bytes, max_definition_bytes)

    for kind, at, length, size in _find_records(file, start, end):
        count(kind, length)
        if kind == CHUNK:
            places.append(at)
            num_bytes += size
    _check_sum(num_bytes, file_bytes)
    for at in places:
        for kind, length in find_records(_read_content(file, _read_head(file, at))):
            count(kind, length)
    return definition_bytes


def _check_sum(num_bytes: int, file_bytes: int) -> None:
    check_bytes('chunks, decompressed,', num_bytes, max_content_bytes(file_bytes))


def _check_records(count: int, allowed: int) -> None:
    if count > allowed:
        raise ValueError(f'it has more than {allowed} records')


def _find_records(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield kind, place, length, and what would be a chunk's claimed size, of each record."""
    while start < end:
        file.seek(start)
        head = file.read(CHUNK_START.size)
        if len(head) < CHUNK_START.size:
            return
        kind, length, _, _, size, *_ = CHUNK_START.unpack(head)
        yield kind, start, length, size
        start += RECORD.size + length


class _Head(NamedTuple):
    """What a chunk says about itself."""

    size: int
    checksum: int
    compression: str
    compressed_size: int


def _read_head(file: BinaryIO, at: int) -> _Head:
    """Read the head of a chunk; the file is then at its content."""
    file.seek(at)
    head = file.read(CHUNK_START.size)
    kind, _, _, _, size, checksum, num_characters = CHUNK_START.unpack(head)
    if kind != CHUNK or num_characters > MAX_NAME_CHARACTERS:
        raise ValueError(f'there is no chunk at byte {at} of the file')
    compression = file.read(num_characters).decode()
    (compressed_size,) = LENGTH.unpack(file.read(LENGTH.size))
    return _Head(size, checksum, compression, compressed_size)


def _read_content(file: BinaryIO, head: _Head) -> bytes:
    data = read_limited(file, head.compressed_size)
    content = decompress_chunk(head.compression, data, head.size)
    if head.checksum not in (0, zlib.crc32(content)):
        raise ValueError('a chunk has a wrong checksum')
    return content


def _end_in_file(chunk: _Chunk) -> int:
    return chunk.chunk_start_offset + max(1, chunk.chunk_length, chunk.compressed_size)


def _end_of(chunk: _Chunk) -> int:
    return max(chunk.message_start_time, chunk.message_end_time) + 1
