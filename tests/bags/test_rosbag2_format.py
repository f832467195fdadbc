"""Bags of p2d have what rosbag2's reader requires, by its sources of Humble, Jazzy and Rolling.

The tables below say what is read where: `rosbag2_storage/yaml.hpp` (metadata.yaml), `qos.cpp`
(QoS profiles), `mcap_storage.cpp`, `sqlite_storage.cpp`, and `reader_writer_factory.cpp`.
"""

from contextlib import closing
import sqlite3

from converter_bags import capture
from mcap.reader import make_reader
from p2d_node.bags.writing import write_bag
from p2d_node.errors import ConfigError
from p2d_sim.generated import generate_images
import pytest
import yaml


def is_uint(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def is_text(value: object) -> bool:
    return isinstance(value, str)


TIMES = {
    'duration': {'nanoseconds': is_uint},
    'starting_time': {'nanoseconds_since_epoch': is_uint},
    'message_count': is_uint,
}
TOPIC = {
    'message_count': is_uint,
    'topic_metadata': {
        'name': is_text,
        'type': is_text,
        'serialization_format': 'cdr',
        'offered_qos_profiles': is_text,  # a list from version 9 on, which Humble cannot read
        'type_description_hash': is_text,
    },
}
METADATA = {
    **TIMES,
    'version': 8,
    'storage_identifier': is_text,
    'topics_with_message_count': [TOPIC],
    'relative_file_paths': [is_text],
    'files': [{'path': is_text, **TIMES}],
    # A format chooses the reader for compressed files and messages, which refuses chunks.
    'compression_format': '',
    'compression_mode': '',
    'custom_data': None,
    'ros_distro': is_text,
}
TIME = {'sec': is_uint, 'nsec': is_uint}
QOS = [
    {
        'history': 1,  # keep last
        'depth': 10,
        'reliability': 1,  # reliable
        'durability': 2,  # volatile
        'deadline': TIME,
        'lifespan': TIME,
        'liveliness': 1,  # automatic
        'liveliness_lease_duration': TIME,
        'avoid_ros_namespace_conventions': False,
    }
]

STATEMENTS = (
    'SELECT schema_version from schema',
    'SELECT ros_distro from schema',
    'SELECT metadata_version, metadata FROM metadata ORDER BY id',
    'SELECT name, type, serialization_format, offered_qos_profiles FROM topics ORDER BY id',
    'SELECT id, name, type, serialization_format, offered_qos_profiles, type_description_hash '
    'FROM topics ORDER BY id',
    'SELECT topic_type, encoding, encoded_message_definition, type_description_hash FROM '
    'message_definitions',
    'SELECT data, timestamp, topics.name, messages.id FROM messages JOIN topics ON '
    'messages.topic_id = topics.id ORDER BY messages.timestamp, messages.id',
)


def check(value, wanted, path='') -> None:
    """Compare parsed YAML with a table of types and values."""
    if isinstance(wanted, dict):
        for name, part in wanted.items():
            check(value[name], part, f'{path}.{name}')
    elif isinstance(wanted, list):
        assert value, path
        for item in value:
            check(item, wanted[0], f'{path}[]')
    elif callable(wanted):
        assert wanted(value), f'{path}: {value!r}'
    else:
        assert value == wanted, path


@pytest.mark.parametrize(
    ('storage', 'compression'), [('mcap', 'none'), ('mcap', 'zstd'), ('sqlite3', 'none')]
)
def test_the_metadata_is_what_all_distributions_read(tmp_path, storage, compression):
    write_bag(capture(2), tmp_path / 'bag', storage=storage, compression=compression)
    content = yaml.safe_load((tmp_path / 'bag' / 'metadata.yaml').read_text())
    metadata = content['rosbag2_bagfile_information']
    check(metadata, METADATA)
    assert metadata['storage_identifier'] == storage
    topics = metadata['topics_with_message_count']
    assert len(topics) == 12
    for topic in topics:
        check(yaml.safe_load(topic['topic_metadata']['offered_qos_profiles']), QOS)
    assert sum(topic['message_count'] for topic in topics) == metadata['message_count'] == 24
    (name,) = metadata['relative_file_paths']
    assert (tmp_path / 'bag' / name).is_file()


@pytest.mark.parametrize('compression', ['none', 'zstd'])
def test_the_mcap_file_is_what_rosbag2_and_foxglove_read(tmp_path, compression):
    images = capture(2)
    write_bag(images, tmp_path / 'bag', compression=compression)
    with (tmp_path / 'bag' / 'bag.mcap').open('rb') as file:
        reader = make_reader(file, validate_crcs=True)
        assert reader.get_header().profile == 'ros2'
        summary = reader.get_summary()
        assert summary.statistics.message_count == 24
        kinds = {chunk.compression for chunk in summary.chunk_indexes}
        assert kinds == {'' if compression == 'none' else 'zstd'}
        # Without an index of messages Humble reads in the order of the file.
        assert all(chunk.message_index_length for chunk in summary.chunk_indexes)
        for channel in summary.channels.values():
            schema = summary.schemas[channel.schema_id]
            assert (schema.encoding, channel.message_encoding) == ('ros2msg', 'cdr')
            assert b'MSG: std_msgs/Header' in schema.data
            check(yaml.safe_load(channel.metadata['offered_qos_profiles']), QOS)
        (metadata,) = reader.iter_metadata()
        assert metadata.name == 'rosbag2'
        check(yaml.safe_load(metadata.metadata['serialized_metadata']), METADATA)
        times = [message.log_time for _, _, message in reader.iter_messages()]
    assert times[::2] == [image.stamp_ns for image in images]


def test_the_database_has_the_tables_that_rosbag2_reads(tmp_path):
    write_bag(capture(2), tmp_path / 'bag', storage='sqlite3')
    with closing(sqlite3.connect(tmp_path / 'bag' / 'bag.db3')) as database:
        rows = [database.execute(statement).fetchall() for statement in STATEMENTS]
    (((version,),), ((_,),), ((metadata_version, metadata),), topics, *_, messages) = rows
    assert (version, metadata_version) == (4, 8)
    check(yaml.safe_load(metadata), METADATA)
    assert len(topics) == 12
    check(yaml.safe_load(topics[0][3]), QOS)
    assert len(messages) == 24


def test_zstd_makes_a_raw_bag_smaller_and_is_for_mcap_only(tmp_path):
    images = list(generate_images(1, height=90, width=160))
    for compression in ('none', 'zstd'):
        write_bag(images, tmp_path / compression, encoding='bgr8', compression=compression)
    plain, packed = (
        (tmp_path / name / f'{name}.mcap').stat().st_size for name in ('none', 'zstd')
    )
    assert packed < 0.9 * plain
    with pytest.raises(ConfigError, match=r'^compression: got zstd with storage sqlite3, allowed'):
        write_bag(images, tmp_path / 'bag', storage='sqlite3', compression='zstd')
    with pytest.raises(ConfigError, match=r"^compression: got 'lz4', allowed: none, zstd"):
        write_bag(images, tmp_path / 'bag', compression='lz4')
