"""Sets limits in rosbags, which decompresses and parses as much as a bag asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
import shutil
import struct
import tempfile
from typing import Any, BinaryIO, Protocol

from backports import zstd
from lz4 import frame as lz4  # type: ignore[import-untyped]
from p2d_node.errors import BackendUnavailableError, quote
from p2d_node.sparse_files import stored_bytes
from p2d_node.yaml_text import parse_yaml
from rosbags.rosbag2 import metadata, reader, storage_mcap, storage_sqlite3
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

MAX_MESSAGE_BYTES = 256 << 20
"""Of a message, and of a chunk of messages. Recorders write chunks of a few megabytes, or larger
ones with a single message; a raw 4K image has 25 MB."""

RECORD = struct.Struct('<BQ')
"""Start of a record of an MCAP file: its kind and length."""

MAX_RECORDS = 1 << 18
"""Of a chunk, of the chunks that share a moment, and of any file. Recorders write up to 20,000 per
chunk. Each takes hundreds of bytes and some microseconds, even an empty one."""

BYTES_PER_RECORD = 2
"""Least number of a file with more records. Small messages at regular times take 2.3 and more in
chunks of zstd, and 16 in the index of messages, which recorders write."""

MIN_INDEX_BYTES, INDEX_RATIO = 16 << 20, 16
"""Of the index of an MCAP file: always allowed, and what the file has to the rest. A chunk has
100 bytes of it, which take several times as much memory."""

ALWAYS_ALLOWED_FILE_BYTES = 1 << 30
MAX_FILE_RATIO = 1000
"""Decompressed to compressed size of a file above that. Black images compress that well."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def limit_rosbags() -> None:
    """Set the limits. Doing it again changes nothing.

    Raises:
        BackendUnavailableError: This version of rosbags has no place for them.
    """
    places = (
        (reader, 'zstd', _LimitedZstd),
        (reader, 'YAML', _PlainYaml),
        (metadata, 'YAML', _PlainYaml),
        *(
            (module, 'parse_qos', _parse_profiles)
            for module in (reader, storage_mcap, storage_sqlite3)
        ),
        (storage_mcap, 'read_exact', read_limited),
    )
    for module, name, limited in places:
        if not hasattr(module, name):
            raise BackendUnavailableError(
                f'rosbags: {module.__name__} has no {name}, so its memory cannot be limited; '
                'install the version in requirements/base.txt'
            )
        setattr(module, name, limited)
    for compression in CHUNK_DECOMPRESSORS:
        storage_mcap.DECOMPRESSORS[compression] = partial(decompress_chunk, compression)


def read_limited(file: BinaryIO, size: int) -> bytes:
    """Read a part of an MCAP file, whose size is what the file claims."""
    check_bytes('a record', size, MAX_MESSAGE_BYTES)
    content = file.read(max(0, size))
    if len(content) != size:
        raise ValueError(f'a record has {len(content)} bytes, and not {size} as the file says')
    return content


def check_bytes(what: str, num_bytes: int, max_bytes: int) -> None:
    """Raise `ValueError` if something is larger than allowed."""
    if num_bytes > max_bytes:
        raise ValueError(f'got {what} of {num_bytes} bytes, allowed: at most {max_bytes}')


def _decompress_zstd_chunk(data: bytes, size: int) -> bytes:
    return _decompress(zstd.ZstdDecompressor(), data, 'a chunk', size)


def _decompress_lz4_chunk(data: bytes, size: int) -> bytes:
    return _decompress(lz4.LZ4FrameDecompressor(), data, 'a chunk', size)


def _same(data: bytes, size: int) -> bytes:
    check_bytes('a chunk', len(data), size)
    return data


CHUNK_DECOMPRESSORS: Mapping[str, Callable[[bytes, int], bytes]] = {
    'zstd': _decompress_zstd_chunk,
    'lz4': _decompress_lz4_chunk,
    '': _same,
}


def decompress_chunk(compression: str, data: bytes, size: int) -> bytes:
    """Return the content of a chunk of an MCAP file.

    Args:
        compression: Its compression; empty for none.
        data: As it lies in the file.
        size: Number of bytes that the file says the content has.

    Raises:
        ValueError: The content is too large, has too many records, or is not what the file says.
    """
    if compression not in CHUNK_DECOMPRESSORS:
        raise ValueError(f'got chunks of compression {quote(compression)}, allowed: zstd or lz4')
    check_bytes('a chunk', size, MAX_MESSAGE_BYTES)
    content = CHUNK_DECOMPRESSORS[compression](data, size)
    if len(content) != size:
        raise ValueError(f'a chunk has {len(content)} bytes, and not {size} as the file says')
    if sum(1 for _ in find_records(content)) > MAX_RECORDS:
        raise ValueError(f'a chunk has more than {MAX_RECORDS} records')
    return content


def find_records(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield kind and length of the records of a chunk, up to one above what a chunk may have."""
    at = count = 0
    while at + RECORD.size <= len(content) and count <= MAX_RECORDS:
        kind, length = RECORD.unpack_from(content, at)
        yield kind, length
        at += RECORD.size + length
        count += 1


def _decompress(decompressor: _Decompressor, data: bytes, what: str, max_bytes: int) -> bytes:
    """Decompress one frame; nothing is trusted that it says about its size."""
    content = decompressor.decompress(data, max_length=max_bytes + 1)
    check_bytes(f'{what}, decompressed,', len(content), max_bytes)
    if not decompressor.eof:
        raise ValueError(f'the compressed data of {what} is incomplete')
    return content


class _LimitedZstd:
    """Takes the place of the module `zstd` in the reader of folders."""

    @staticmethod
    def decompress(data: bytes) -> bytes:
        """Return a message."""
        # The size in its header, if there is one, is checked before memory is used.
        claimed = zstd.get_frame_info(data).decompressed_size or 0
        check_bytes('a message', claimed, MAX_MESSAGE_BYTES)
        return _decompress(zstd.ZstdDecompressor(), data, 'a message', MAX_MESSAGE_BYTES)

    @staticmethod
    def open(file: BinaryIO, mode: str) -> _LimitedFile:
        """Open a compressed file, which the reader copies to the folder for temporary files."""
        return _LimitedFile(file, _BUDGET.get())


@dataclass
class Budget:
    """Of all files of one bag together.

    Attributes:
        what: What of them is limited, for the message.
        max_bytes: That it may have.
        num_bytes: That it has so far.
    """

    what: str
    max_bytes: int
    num_bytes: int = 0

    def spend(self, num_bytes: int) -> None:
        """Add what one more file has; raises `ValueError` if that is too much."""
        self.num_bytes += num_bytes
        check_bytes(self.what, self.num_bytes, self.max_bytes)


_BUDGET: ContextVar[Budget] = ContextVar('_BUDGET')
"""rosbags opens the files of a bag one by one, and says nothing about the bag."""


@contextmanager
def limit_files(num_bytes: int) -> Iterator[None]:
    """Limit the decompressed size of all files that are decompressed while a bag is opened.

    Args:
        num_bytes: That the bag takes on the disk.
    """
    free_bytes = shutil.disk_usage(tempfile.gettempdir()).free
    budget = Budget('files, decompressed,', max_file_bytes(num_bytes, free_bytes))
    token = _BUDGET.set(budget)
    try:
        yield
    finally:
        _BUDGET.reset(token)


def max_file_bytes(num_bytes: int, free_bytes: int) -> int:
    """Return the largest decompressed size of the files of a bag.

    Args:
        num_bytes: Compressed size.
        free_bytes: Of the disk that they are decompressed to; half of it is left to others.
    """
    return min(max_content_bytes(num_bytes), free_bytes // 2)


def max_content_bytes(num_bytes: int) -> int:
    """Return the largest decompressed size of a number of compressed bytes."""
    return max(ALWAYS_ALLOWED_FILE_BYTES, MAX_FILE_RATIO * num_bytes)


def max_index_bytes(num_bytes: int) -> int:
    """Return the largest size of the index, or of all definitions, of a file of a size."""
    return MIN_INDEX_BYTES + num_bytes // INDEX_RATIO


def max_records(num_bytes: int) -> int:
    """Return the largest number of records of a file, or messages of a bag, of a size."""
    return max(MAX_RECORDS, num_bytes // BYTES_PER_RECORD)


def bag_bytes(bag: Path) -> int:
    """Return how many bytes of a bag are on the disk; links in its folder are no part of it."""
    files = [path for path in bag.iterdir() if not path.is_symlink()] if bag.is_dir() else [bag]
    return sum(stored_bytes(path) for path in files)


def max_image_bytes(bag: Path, folder: Path) -> int:
    """Return how many bytes of images of a bag may be written to a folder."""
    return max_file_bytes(bag_bytes(bag), shutil.disk_usage(folder).free)


class _LimitedFile(zstd.ZstdFile):
    """A compressed file that can be read as far as the budget of its bag goes."""

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        super().__init__(file, 'rb')
        self._budget = budget

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes."""
        content = super().read(size)
        self._budget.spend(len(content))
        return content


MAX_PROFILE_BYTES, MAX_PROFILES_BYTES = 16 << 10, 256 << 10
"""Of the QoS profiles of one topic, and of the different ones of a bag. A profile has 300 bytes,
and a topic one per publisher."""


class _Profiles:
    """The QoS profiles of the topics of one bag, each text read once."""

    def __init__(self) -> None:
        self._parsed: dict[str, list[Any]] = {}
        self._budget = Budget('the QoS profiles of all topics', MAX_PROFILES_BYTES)

    def parse(self, text: str) -> list[Any]:
        """Return what rosbags makes of a text."""
        if text not in self._parsed:
            check_bytes('the QoS profiles of a topic', len(text), MAX_PROFILE_BYTES)
            self._budget.spend(len(text))
            self._parsed[text] = metadata.parse_qos(text)
        return self._parsed[text]


_PROFILES: ContextVar[_Profiles] = ContextVar('_PROFILES')


@contextmanager
def limit_profiles() -> Iterator[None]:
    """Limit the QoS profiles of all files of a bag while it is opened."""
    token = _PROFILES.set(_Profiles())
    try:
        yield
    finally:
        _PROFILES.reset(token)


def _parse_profiles(profiles: Any) -> list[Any]:
    """Take the place of `parse_qos`. From version 9 on, metadata have lists in place of texts."""
    if isinstance(profiles, str):
        return _PROFILES.get(_Profiles()).parse(profiles)  # rosbags may be used by others, too
    return metadata.parse_qos(profiles)


class _PlainYaml(YAML):
    """Reads the metadata by the parser that they are checked with: a second one may differ."""

    def load(self, stream: Any) -> Any:
        """Return the content."""
        try:
            return parse_yaml(stream)
        except ValueError as err:
            raise YAMLError(str(err)) from err
