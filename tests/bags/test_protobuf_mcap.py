"""Files of nuscenes2mcap that are damaged, or hold more than fits into memory."""

import os
from pathlib import Path

from backports import zstd
import bag_bombs as bombs
from converter_bags import (
    CALIBRATION_FIELDS,
    capture,
    foxglove_class,
    IMAGE_FIELDS,
    KINDS,
    write_foxglove,
)
from google.protobuf import descriptor_pb2
from lz4 import frame as lz4
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from mcap_protobuf.schema import build_file_descriptor_set
from mcap_protobuf.writer import Writer
from memory import peak_growth_bytes
import numpy as np
from p2d_node.bags import limited_reader, protobuf_mcap
from p2d_node.bags.foxglove import converter_of, MAX_SCHEMA_BYTES
from p2d_node.bags.reading import BagReader
from p2d_node.errors import BackendUnavailableError, ConfigError
import pytest

FOUR_GB = 1 << 32


def read_all(path: Path) -> list:
    with BagReader(path) as reader:
        return list(reader.messages())


def refuse(path: Path, reason: str) -> None:
    with pytest.raises(
        ConfigError, match=f'^bag: {path} (cannot be read|is damaged): .*({reason})'
    ) as caught:
        read_all(path)
    assert '\n' not in str(caught.value)


def schema_and_channel(data: bytes, name: str = 'foxglove.CompressedImage') -> bytes:
    return bombs.record(
        3, bombs.number(1, 2), bombs.text(name), bombs.text('protobuf'), bombs.text(data)
    ) + bombs.record(
        4,
        bombs.number(1, 2),
        bombs.number(1, 2),
        bombs.text('/cam_front/image_rect_compressed'),
        bombs.text('protobuf'),
        bombs.text(b''),
    )


def statistics(count: int) -> bytes:
    sizes = ((count, 8), (1, 2), (1, 4), (0, 4), (0, 4), (1, 4), (0, 8), (0, 8), (0, 4))
    return bombs.record(11, *(bombs.number(*item) for item in sizes))


def write(
    path: Path,
    content: bytes = b'',
    *,
    size: int | None = None,
    claimed: int | None = None,
    compression: str = '',
    schema: bytes | None = None,
    count: int = 1,
    again: int = 0,
    duration_ns: int = 0,
    in_index: bytes = b'',
) -> Path:
    """Write a file with `count` equal chunks of one time.

    Args:
        content: Of the chunk, as it lies in the file.
        size: What the chunk says about its size.
        claimed: What the index says about it.
        again: How often the index names the first chunk again, each time at a later time.
        duration_ns: From the first to the last message of a chunk, as the index says.
        in_index: Records at the end of the index.
    """
    size = len(content) if size is None else size
    head = bombs.MAGIC + bombs.record(1, bombs.text(''), bombs.text('test'))
    data = bombs.chunk(content, size, compression)
    places = [(0, len(head) + number * len(data)) for number in range(count)]
    places += [(2 * number, len(head)) for number in range(1, again + 1)]
    index = b''.join(
        bombs.record(
            8,
            bombs.number(time, 8),
            bombs.number(time + duration_ns, 8),
            bombs.number(place, 8),
            bombs.number(len(data), 8),
            bombs.text(b''),
            bombs.number(0, 8),
            bombs.text(compression),
            bombs.number(len(content), 8),
            bombs.number(size if claimed is None else claimed, 8),
        )
        for time, place in places
    )
    if schema is None:
        schema = schema_of(IMAGE_FIELDS)
    summary = schema_and_channel(schema) + index + statistics(count) + in_index
    data *= count
    footer = bombs.record(2, bombs.number(len(head + data), 8), bombs.number(0, 8 + 4))
    path.write_bytes(head + data + summary + footer + bombs.MAGIC)
    return path


def schema_of(fields) -> bytes:
    message_class = foxglove_class('CompressedImage', fields)
    return build_file_descriptor_set(message_class).SerializeToString()


def image(num_bytes: int, log_time_ns: int = 0) -> bytes:
    """Return a record with a message of one long field `data`."""
    length, value = num_bytes, b''
    while length > 127:
        value += bytes([length & 127 | 128])
        length >>= 7
    body = b'\x12' + value + bytes([length]) + bytes(num_bytes)
    sizes = ((1, 2), (0, 4), (log_time_ns, 8), (0, 8))
    return bombs.record(5, *(bombs.number(*item) for item in sizes), body)


def test_a_file_that_is_whole_is_read_with_its_log_times(tmp_path):
    path = write(tmp_path / 'a.mcap', image(10) * 2)
    assert [m.topic for m in read_all(path)] == ['/cam_front/image_rect_compressed'] * 2


@pytest.mark.attack(
    'a chunk of a file of protobuf that expands to 4 GB (zstd or lz4), and says so or lies',
    'refused by the size it claims, or as soon as it is larger than that',
)
@pytest.mark.parametrize('size', [FOUR_GB, 1000], ids=['true', 'lie'])
@pytest.mark.parametrize('compression', ['zstd', 'lz4'])
def test_a_chunk_is_decompressed_up_to_its_size(tmp_path, compression, size):
    if compression == 'zstd':
        content = bombs.zstd_of_zeros(1 << 15, claimed=None)
    else:
        content = lz4.compress(bytes(64 << 20))
    path = write(tmp_path / 'a.mcap', content, size=size, compression=compression)
    assert path.stat().st_size < 300_000
    assert peak_growth_bytes(lambda: refuse(path, 'got .*chunk.*allowed: at most')) < 16 << 20


@pytest.mark.attack(
    'a file of protobuf of small chunks of one time, which take 600 MB, or claim another size',
    'refused if chunks that share a moment have more than 512 MB, or another size than claimed',
)
@pytest.mark.parametrize(('claimed', 'reason'), [(None, 'overlap in time'), (10, 'not that of')])
def test_chunks_that_overlap_in_time_have_a_limit(tmp_path, claimed, reason):
    content = image(2 << 20)
    packed = lz4.compress(content)
    options = {'size': len(content), 'claimed': claimed, 'compression': 'lz4', 'count': 300}
    path = write(tmp_path / 'a.mcap', packed, **options)
    assert path.stat().st_size < 3_000_000
    assert peak_growth_bytes(lambda: refuse(path, reason)) < 16 << 20


@pytest.mark.attack(
    'a file of protobuf whose index names a chunk without messages a thousand times',
    'refused: each byte of the file belongs to one chunk',
)
@pytest.mark.timeout(20)
def test_a_chunk_is_named_once(tmp_path):
    content = bombs.record(0x7F, bytes(64 << 20))
    packed = lz4.compress(content)
    options = {'size': len(content), 'compression': 'lz4', 'again': 1000}
    path = write(tmp_path / 'a.mcap', packed, **options)
    assert path.stat().st_size < 400_000
    refuse(path, 'its index names two chunks that share the byte')


@pytest.mark.attack(
    'a file of protobuf of 438 MB that is an index of six million chunks, which takes 1.9 GB',
    'refused above 16 MiB and a 16th of the file, before it is read',
)
def test_an_index_has_a_limit(tmp_path):
    options = {'size': len(image(0)), 'again': 300_000}
    path = write(tmp_path / 'a.mcap', image(0), **options)
    assert path.stat().st_size > 20 << 20
    assert peak_growth_bytes(lambda: refuse(path, 'got an index of .* allowed:')) < 16 << 20


def test_a_message_is_at_a_time_of_its_chunk(tmp_path):
    refuse(write(tmp_path / 'a.mcap', image(0, 5)), 'a message of 5 ns is not in the times of its')


@pytest.mark.attack(
    'a chunk of a file of protobuf with millions of empty messages',
    'refused above 262,144 records',
)
def test_a_chunk_has_a_limit_of_records(tmp_path):
    content = image(0) * 300_000
    options = {'size': len(content), 'compression': 'lz4'}
    path = write(tmp_path / 'a.mcap', lz4.compress(content), **options)
    assert path.stat().st_size < 300_000
    growth = peak_growth_bytes(lambda: refuse(path, 'more than 262144 records'))
    assert growth < 32 << 20


@pytest.mark.attack(
    'a file of protobuf of 37 kB whose chunks share a moment and have 10 million empty messages',
    'refused above 262,144 records of all chunks, or of those that share a moment if it is large',
)
@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (bombs.record(0x7F) * 100_000, 'it has more than 262144 rec'),
        (
            image(0, 1) * 100_000 + bombs.record(0x7F, os.urandom(400_000)),
            'chunks that overlap in time have more than 262144 messages',
        ),
    ],
    ids=['small', 'large'],
)
def test_the_records_of_chunks_have_a_limit(tmp_path, content, reason):
    options = {'size': len(content), 'compression': 'zstd', 'count': 4, 'duration_ns': 1}
    path = write(tmp_path / 'a.mcap', zstd.compress(content), **options)
    assert peak_growth_bytes(lambda: refuse(path, reason)) < 128 << 20


@pytest.mark.attack(
    'a schema of protobuf, which the file brings along, with a list of millions of messages',
    "refused: its lists and groups must be those of Foxglove's schema",
)
@pytest.mark.parametrize(
    'extra',
    [
        ('more', 9, KINDS.TYPE_INT32, True),
        ('data', 2, KINDS.TYPE_BYTES, True),
        ('data', 2, KINDS.TYPE_STRING, False),
    ],
)
def test_a_schema_with_other_lists_is_refused(tmp_path, extra):
    fields = [*(field for field in IMAGE_FIELDS if field[0] != extra[0]), extra]
    path = write(tmp_path / 'a.mcap', image(0), schema=schema_of(fields))
    refuse(path, f"foxglove.CompressedImage: its '{extra[0]}' is not as Foxglove has it")


def test_a_schema_with_extensions_is_refused(tmp_path):
    schema = descriptor_pb2.FileDescriptorSet.FromString(schema_of(IMAGE_FIELDS))
    file = next(f for f in schema.file if f.package == 'foxglove')
    file.syntax = 'proto2'
    file.message_type[0].extension_range.add(start=100, end=200)
    path = write(tmp_path / 'a.mcap', image(0), schema=schema.SerializeToString())
    refuse(path, 'foxglove.CompressedImage: it has extensions, allowed: none')


@pytest.mark.attack(
    'a schema of protobuf whose seconds are a text, which is repeated a billion times',
    "refused: times are those of Foxglove's schema",
)
@pytest.mark.parametrize('change', [{'label': KINDS.LABEL_REPEATED}, {'type': KINDS.TYPE_STRING}])
def test_another_kind_of_time_is_refused(tmp_path, change):
    schema = descriptor_pb2.FileDescriptorSet.FromString(schema_of(IMAGE_FIELDS))
    (time,) = (file for file in schema.file if 'timestamp' in file.name)
    for name, value in change.items():
        setattr(time.message_type[0].field[0], name, value)
    path = write(tmp_path / 'a.mcap', image(0), schema=schema.SerializeToString())
    refuse(path, "google.protobuf.Timestamp: its 'seconds' is not as Foxglove has it")


def test_a_field_that_foxglove_may_add_does_no_harm(tmp_path):
    fields = [*IMAGE_FIELDS, ('exposure', 9, KINDS.TYPE_INT32, False)]
    assert read_all(write(tmp_path / 'a.mcap', image(0), schema=schema_of(fields)))


def test_a_schema_has_a_largest_size(tmp_path):
    path = write(tmp_path / 'a.mcap', image(0), schema=bytes(2 << 20))
    refuse(path, 'got a schema of 2097152 bytes, allowed: at most 65536')


def with_types(message_class, num_types: int) -> bytes:
    """Return the schema of a class, with many more types."""
    schema = build_file_descriptor_set(message_class)
    for number in range(num_types):
        schema.file[-1].message_type.add(name=f'x{number}')
    return schema.SerializeToString()


def write_channels(path: Path, schemas: list[bytes], num_channels: int) -> Path:
    """Write a file with channels of the schemas in turn, and one empty message."""
    with path.open('wb') as file:
        writer = McapWriter(file)
        writer.start()
        name = 'foxglove.CompressedImage'
        ids = [writer.register_schema(name, 'protobuf', schema) for schema in schemas]
        for number in range(num_channels):
            topic = f'/cam_{number}/image_rect_compressed'
            last = writer.register_channel(topic, 'protobuf', ids[number % len(ids)])
        writer.add_message(last, 1, b'', 1)
        writer.finish()
    return path


@pytest.mark.attack(
    'a file of protobuf with many channels of one schema, each of which parses it again',
    'a schema is parsed once, and has at most 64 kB; there are at most 16',
)
@pytest.mark.timeout(60)
def test_a_schema_is_parsed_once(tmp_path, monkeypatch):
    parsed = []

    def count(schema):
        parsed.append(schema.id)
        return converter_of(schema)

    monkeypatch.setattr(protobuf_mcap, 'converter_of', count)
    data = with_types(foxglove_class('CompressedImage', IMAGE_FIELDS), 5000)
    assert len(read_all(write_channels(tmp_path / 'a.mcap', [data], 300))) == 1
    assert len(set(parsed)) == len(parsed) == 1
    read_all(write_channels(tmp_path / 'c.mcap', [data] * 16, 300))
    assert len(parsed) == 17
    refuse(
        write_channels(tmp_path / 'd.mcap', [data] * 17, 300),
        'got 17 schemas of images, allowed: at most 16',
    )
    assert len(parsed) == 17


def test_schemas_of_foxglove_are_far_below_the_limit():
    fields = {'CompressedImage': IMAGE_FIELDS, 'CameraCalibration': CALIBRATION_FIELDS}
    for name, own in fields.items():
        schema = build_file_descriptor_set(foxglove_class(name, own)).SerializeToString()
        assert 10 * len(schema) < MAX_SCHEMA_BYTES


def test_the_schemas_of_the_library_of_foxglove_are_far_below_the_limit():
    library = pytest.importorskip('foxglove', reason='pip install -r requirements/watch.txt')
    for name in ('CompressedImage', 'RawImage', 'CameraCalibration'):
        message_class = getattr(library.messages, name)
        assert 4 * len(message_class.get_schema().data) < MAX_SCHEMA_BYTES


@pytest.mark.attack(
    'The index of a protobuf file holds a chunk, which the library decompresses to any size',
    'refused before it is decompressed',
)
@pytest.mark.parametrize('compression', ['zstd', 'lz4'])
def test_a_chunk_in_the_index_is_not_decompressed(tmp_path, compression):
    content = bytes(64 << 20)
    compress = zstd.compress if compression == 'zstd' else lz4.compress
    chunk = bombs.chunk(compress(content), len(content), compression)
    path = write(tmp_path / 'a.mcap', image(0), in_index=chunk)
    growth = peak_growth_bytes(lambda: refuse(path, 'got a chunk in the index'))
    assert growth < 16 << 20


@pytest.mark.parametrize('kind', range(1, 16))
def test_a_length_that_is_a_lie_takes_no_memory(tmp_path, kind):
    huge = bytes([kind]) + bombs.number(1 << 60, 8)
    whole = write(tmp_path / 'a.mcap', huge).read_bytes()
    path = tmp_path / 'b.mcap'
    start = len(bombs.MAGIC + bombs.record(1, bombs.text(''), bombs.text('test')))
    for content in (whole, whole[:start] + huge + whole[start + len(huge) :]):
        path.write_bytes(content)
        errors: list[str] = []
        assert peak_growth_bytes(lambda errors=errors: errors.append(error_of(path))) < 16 << 20
        assert '\n' not in errors[0]


def error_of(path: Path) -> str:
    try:
        read_all(path)
    except ConfigError as err:
        return str(err)
    return ''


def test_a_damaged_file_is_an_error_of_one_line(tmp_path):
    path = write_foxglove(tmp_path, capture(1))
    content, random = path.read_bytes(), np.random.default_rng(1)
    errors = []
    for count in [1, 8, 64] * 15:
        damaged = bytearray(content)
        for place in random.integers(len(content), size=count):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        errors.append(error_of(path))
    found = [error for error in errors if error]
    assert len(found) > 20
    assert all(error.startswith(f'bag: {path}') and '\n' not in error for error in found)
    path.write_bytes(content[: len(content) // 2])
    refuse(path, '')


def test_topics_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(limited_reader, 'MAX_TOPICS', 0)
    refuse(write(tmp_path / 'a.mcap', image(0)), 'got 1 topics, allowed: at most 0')


def test_records_and_checksums_of_a_chunk_are_checked(tmp_path):
    refuse(write(tmp_path / 'a.mcap', image(9)[:-3]), 'a record is longer than its chunk')
    short = bombs.record(5, bytes(21)) + image(0)
    refuse(write(tmp_path / 'a.mcap', short), 'got a message of 21 bytes, which has no log time')
    path = tmp_path / 'b.mcap'
    with path.open('wb') as file, Writer(file, compression=CompressionType.NONE) as writer:
        message_class = foxglove_class('CompressedImage', IMAGE_FIELDS)
        writer.write_message('/cam_front/a', message_class(frame_id='cam_front'), 1)
    path.write_bytes(path.read_bytes().replace(b'\x09cam_front', b'\x09cam_frons'))
    refuse(path, 'a chunk has a wrong checksum')


@pytest.mark.parametrize(('k', 'd'), [(3, 5), (9, 15)])
def test_a_calibration_has_as_many_numbers_as_a_camera_needs(tmp_path, k, d):
    path = tmp_path / 'a.mcap'
    calibration = foxglove_class('CameraCalibration', CALIBRATION_FIELDS)
    with path.open('wb') as file, Writer(file) as writer:
        writer.write_message('/cam_front/camera_info', calibration(K=[1.0] * k, D=[0.0] * d), 1)
    refuse(path, f'a calibration has {k} values K and {d} values D, allowed: 9, and at most 14')


def test_a_file_without_an_index_or_without_images_is_named(tmp_path):
    path = tmp_path / 'a.mcap'
    other = foxglove_class('PoseInFrame', ())
    with path.open('wb') as file, Writer(file) as writer:
        writer.write_message('/pose', other(), 1)
    refuse(path, 'no messages of ROS 2, and none of foxglove.CompressedImage or foxglove.Camera')
    bombs.write_mcap(path, b'')
    path.write_bytes(path.read_bytes().replace(b'ros2', b'none'))
    refuse(path, 'it has no index; write one with: mcap recover')


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    path = write_foxglove(tmp_path, capture(1))
    monkeypatch.setitem(__import__('sys').modules, protobuf_mcap.__name__, None)
    with pytest.raises(BackendUnavailableError, match='pip install mcap-protobuf-support'):
        BagReader(path)
