"""Small bags that claim or hold much."""

from collections.abc import Sequence
from pathlib import Path

from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

MAGIC = b'\x89MCAP0\r\n'
WINDOW_OF_128_KB = b'\x38'
BLOCK_BYTES = 1 << 17


def number(value: int, num_bytes: int) -> bytes:
    return value.to_bytes(num_bytes, 'little')


def text(content: str | bytes) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return number(len(data), 4) + data


def record(kind: int, *parts: bytes) -> bytes:
    body = b''.join(parts)
    return number(kind, 1) + number(len(body), 8) + body


def zstd_of_zeros(num_blocks: int, *, claimed: int | None) -> bytes:
    """Return a zstd frame of blocks of 128 KB, each of which takes four bytes."""
    header = b'\x00' if claimed is None else b'\xc0'
    size = b'' if claimed is None else number(claimed, 8)
    repeated = 1 << 1 | BLOCK_BYTES << 3
    block, last = number(repeated, 3) + b'\0', number(repeated | 1, 3) + b'\0'
    return b'\x28\xb5\x2f\xfd' + header + WINDOW_OF_128_KB + size + block * (num_blocks - 1) + last


def schema_and_channel(channel: int = 1, qos: str = '') -> bytes:
    profiles = text('offered_qos_profiles') + text(qos)
    return record(
        3, number(1, 2), text('std_msgs/msg/String'), text('ros2msg'), text('string data')
    ) + record(
        4, number(channel, 2), number(1, 2), text(f'/t{channel}'), text('cdr'), text(profiles)
    )


def message(num_bytes: int, stamp_ns: int = 0) -> bytes:
    return record(
        5, number(1, 2), number(0, 4), number(stamp_ns, 8), number(stamp_ns, 8), bytes(num_bytes)
    )


def chunk(content: bytes, size: int, compression: str) -> bytes:
    return record(
        6,
        number(0, 8),
        number(0, 8),
        number(size, 8),
        number(0, 4),
        text(compression),
        number(len(content), 8),
        content,
    )


def write_mcap(path: Path, data: bytes, summary: Sequence[bytes] = ()) -> Path:
    """Write an MCAP file; with an empty summary it has no index."""
    start = MAGIC + record(1, text('ros2'), text('test')) + data
    footer = record(2, number(len(start) if summary else 0, 8), number(0, 8), number(0, 4))
    path.write_bytes(start + b''.join(summary) + footer + MAGIC)
    return path


def write_sparse_mcap(path: Path, place: str, size: int) -> None:
    """Write an MCAP file in which one record has a size that is not on the disk."""
    header, footer = record(1, text('ros2'), text('test')), record(2, bytes(20))
    schema = schema_and_channel()
    parts = {'header': header, 'schema': schema, 'message': message(8), 'index': b''}
    with path.open('wb') as file:
        file.write(MAGIC)
        for name, part in parts.items():
            start = file.tell()
            file.write(part)
            if name == 'index' == place:
                footer = record(2, number(start, 8), bytes(12))
                file.write(schema + record(8, bytes(64)))
            if name == place:  # its first record goes on in a hole
                file.seek(start + 1)
                file.write(number(size, 8))
                file.seek(start + 9 + size)
        file.write(footer + MAGIC)


def write_indexed_mcap(
    path: Path,
    content: bytes,
    size: int,
    compression: str,
    *,
    count: int = 1,
    steps: Sequence[int] = (),
    duration_ns: int = 0,
):
    """Write an MCAP file with `count` equal chunks of one time.

    Args:
        duration_ns: From the first to the last message of a chunk, as the index says.
        steps: For each further entry of the index how many bytes after the first chunk its chunk,
            of a later time, begins.
    """
    start = len(MAGIC + record(1, text('ros2'), text('test')))
    data = chunk(content, size, compression)
    places = [(0, number * len(data)) for number in range(count)]
    places += [(2 * number, step) for number, step in enumerate(steps, 1)]
    index = [
        record(
            8,
            number(time, 8),
            number(time + duration_ns, 8),
            number(start + place, 8),
            number(len(data), 8),
            text(number(1, 2) + number(start + place + len(data), 8)),
            number(31, 8),
            text(compression),
            number(len(content), 8),
            number(size, 8),
        )
        for time, place in places
    ]
    return write_mcap(path, data * count, [schema_and_channel(), *index])


def write_bag(folder: Path, storage: str, compression: str | None = None) -> Path:
    """Write a bag of one text; return its file."""
    writer = Writer(folder, version=8, storage_plugin=StoragePlugin[storage])
    if compression is not None:
        writer.set_compression(CompressionMode[compression], CompressionFormat.ZSTD)
    store = get_typestore(Stores.ROS2_HUMBLE)
    content = store.types['std_msgs/msg/String']('a text')
    with writer:
        connection = writer.add_connection('/text', content.__msgtype__, typestore=store)
        writer.write(connection, 0, store.serialize_cdr(content, content.__msgtype__))
    (file,) = (path for path in folder.iterdir() if path.suffix != '.yaml')
    return file
