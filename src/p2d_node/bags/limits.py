"""Sets limits in rosbags, which decompresses and parses as much as a bag asks for."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any, BinaryIO, Protocol

from backports import zstd
from lz4 import frame as lz4  # type: ignore[import-untyped]
from p2d_node.errors import BackendUnavailableError
from p2d_node.yaml_text import check_plain
from rosbags.rosbag2 import metadata, reader, storage_mcap
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
import yaml

MAX_MESSAGE_BYTES = 256 << 20
"""Of a message, and of a chunk of messages. Recorders write chunks of a few megabytes, or larger
ones with a single message; a raw 4K image has 25 MB."""

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
    places = ((reader, 'zstd', _LimitedZstd), (metadata, 'YAML', _Yaml))
    for module, name, limited in places:
        if not hasattr(module, name):
            raise BackendUnavailableError(
                f'rosbags: {module.__name__} has no {name}, so its memory cannot be limited; '
                'install the version in requirements/base.txt'
            )
        setattr(module, name, limited)
    storage_mcap.DECOMPRESSORS['zstd'] = _decompress_zstd_chunk
    storage_mcap.DECOMPRESSORS['lz4'] = _decompress_lz4_chunk


def check_bytes(what: str, num_bytes: int, max_bytes: int) -> None:
    """Raise `ValueError` if something is larger than allowed."""
    if num_bytes > max_bytes:
        raise ValueError(f'got {what} of {num_bytes} bytes, allowed: at most {max_bytes}')


def _decompress_zstd_chunk(data: bytes, size: int) -> bytes:
    check_bytes('a chunk', size, MAX_MESSAGE_BYTES)
    return _decompress(zstd.ZstdDecompressor(), data, 'a chunk', size)


def _decompress_lz4_chunk(data: bytes, size: int) -> bytes:
    check_bytes('a chunk', size, MAX_MESSAGE_BYTES)
    return _decompress(lz4.LZ4FrameDecompressor(), data, 'a chunk', size)


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
        num_bytes = os.fstat(file.fileno()).st_size
        free_bytes = shutil.disk_usage(tempfile.gettempdir()).free
        return _LimitedFile(file, max_file_bytes(num_bytes, free_bytes))


def max_file_bytes(num_bytes: int, free_bytes: int) -> int:
    """Return the largest decompressed size of a file.

    Args:
        num_bytes: Compressed size.
        free_bytes: Of the disk that it is decompressed to; half of it is left to others.
    """
    return min(max(ALWAYS_ALLOWED_FILE_BYTES, MAX_FILE_RATIO * num_bytes), free_bytes // 2)


class _LimitedFile(zstd.ZstdFile):
    """A compressed file that can be read up to a number of decompressed bytes."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        super().__init__(file, 'rb')
        self._num_bytes, self._max_bytes = 0, max_bytes

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes."""
        content = super().read(size)
        self._num_bytes += len(content)
        check_bytes('a file, decompressed,', self._num_bytes, self._max_bytes)
        return content


class _Yaml(YAML):
    """Refuses YAML that is not plain, in the QoS profiles of topics."""

    def load(self, stream: Any) -> Any:
        """Return the content."""
        try:
            check_plain(stream)
        except (ValueError, yaml.YAMLError) as err:
            raise YAMLError(str(err)) from err
        return super().load(stream)
