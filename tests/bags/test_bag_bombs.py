"""Bags of a few kilobytes that claim or hold more than fits into memory."""

from collections.abc import Sequence
from contextlib import closing
import json
import os
from pathlib import Path
import sqlite3
import subprocess
import sys
import time

from backports import zstd
import bag_bombs as bombs
from lz4 import frame as lz4
from memory import peak_growth_bytes
from p2d_node.bags import limits, mcap_chunks
from p2d_node.bags.image_files import read_image
from p2d_node.bags.reading import BagReader
from p2d_node.errors import ConfigError
from p2d_node.sparse_files import stored_bytes
from p2d_node.sqlite_files import JOURNAL_MAGIC
import page_bombs
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from ruamel.yaml.error import YAMLError
import yaml

FOUR_GB = 1 << 32
ALIASES = '- &a {history: 1, depth: 1, lifespan: {sec: 0, nsec: 0}}\n- *a\n'
PROFILE = (
    '- {history: 1, depth: 1, reliability: 1, durability: 1, deadline: {sec: 0, nsec: 0}, '
    'lifespan: {sec: 0, nsec: 0}, liveliness: 1, liveliness_lease_duration: {sec: 0, nsec: 0}, '
    'avoid_ros_namespace_conventions: false}'
)


def read_all(bag: Path) -> list:
    with BagReader(bag) as reader:
        return list(reader.messages())


def refuse(bag: Path, reason: str) -> None:
    with pytest.raises(
        ConfigError, match=f'^bag: {bag} (cannot be read|is damaged): .*({reason})'
    ):
        read_all(bag)


def name_compressed_files(bag: Path, names: Sequence[str]) -> None:
    """Say in the metadata of a bag that these are its files, each compressed as a whole."""
    path = bag / 'metadata.yaml'
    metadata = yaml.safe_load(path.read_text())
    metadata['rosbag2_bagfile_information'] |= {
        'compression_format': 'zstd',
        'compression_mode': 'FILE',
        'relative_file_paths': list(names),
    }
    path.write_text(yaml.safe_dump(metadata))


def change(file: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(statement, values)


@pytest.mark.attack(
    'a compressed message of 131 kB in a bag that expands to 4 GB',
    'refused by the size it claims, or at 256 MB if it claims none or lies',
)
@pytest.mark.parametrize(
    ('claimed', 'max_growth'),
    [(FOUR_GB, 16 << 20), (None, 600 << 20), (7, 600 << 20)],
    ids=['true', 'none', 'lie'],
)
def test_a_message_is_decompressed_up_to_a_limit(tmp_path, claimed, max_growth):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3', 'MESSAGE')
    bomb = bombs.zstd_of_zeros(1 << 15, claimed=claimed)
    assert len(bomb) < 132_000
    change(file, 'UPDATE messages SET data = ?', bomb)
    # zstd itself notices a claim that is too small.
    reason = 'a message.*at most 268435456|Destination buffer is too small'
    growth = peak_growth_bytes(lambda: refuse(tmp_path / 'bag', reason))
    assert growth < max_growth


@pytest.mark.attack(
    'a chunk of an MCAP file that expands to 4 GB (zstd or lz4), and says so or lies',
    'refused by the size it claims, or as soon as it is larger than that',
)
@pytest.mark.parametrize('size', [FOUR_GB, 1000], ids=['true', 'lie'])
@pytest.mark.parametrize('compression', ['zstd', 'lz4'])
@pytest.mark.parametrize('is_indexed', [True, False])
def test_a_chunk_is_decompressed_up_to_its_size(tmp_path, compression, size, is_indexed):
    if compression == 'zstd':
        content = bombs.zstd_of_zeros(1 << 15, claimed=None)
    else:
        content = lz4.compress(bytes(64 << 20))
    path = tmp_path / 'bag.mcap'
    if is_indexed:
        bombs.write_indexed_mcap(path, content, size, compression)
    else:
        bombs.write_mcap(
            path, bombs.schema_and_channel() + bombs.chunk(content, size, compression)
        )
    assert path.stat().st_size < 300_000
    assert peak_growth_bytes(lambda: refuse(path, 'got .*chunk.*allowed: at most')) < 16 << 20


@pytest.mark.attack(
    'an MCAP file whose chunks of a few kilobytes share a moment, and take 600 MB together',
    'refused if the chunks that share a moment have more than 512 MB',
)
def test_chunks_that_overlap_in_time_have_a_limit(tmp_path):
    content = bombs.message(2 << 20)
    path = tmp_path / 'bag.mcap'
    bombs.write_indexed_mcap(path, lz4.compress(content), len(content), 'lz4', count=300)
    assert path.stat().st_size < 3_000_000
    start = time.monotonic()
    refuse(path, 'got chunks that overlap in time of .* bytes, allowed: at most 536870912')
    assert time.monotonic() - start < 2.0
    bombs.write_indexed_mcap(path, lz4.compress(content), len(content), 'lz4', count=3)
    assert [len(message.data) for message in read_all(path)] == [2 << 20] * 3


@pytest.mark.attack(
    'an MCAP file of 332 kB with 40 chunks of 240 MB each, one after the other, with an index or '
    'without',
    'refused at once if its chunks have more than 1000 times its size (at least 1 GiB)',
)
@pytest.mark.parametrize('is_indexed', [True, False])
def test_all_chunks_of_a_file_have_a_limit(tmp_path, monkeypatch, is_indexed):
    monkeypatch.setattr(limits, 'ALWAYS_ALLOWED_FILE_BYTES', 1 << 20)
    content, path = bombs.message(1 << 20), tmp_path / 'bag.mcap'
    packed = zstd.compress(content)
    if is_indexed:
        bombs.write_indexed_mcap(path, packed, len(content), 'zstd', count=100)
    else:
        chunks = bombs.chunk(packed, len(content), 'zstd') * 100
        bombs.write_mcap(path, bombs.schema_and_channel() + chunks)
    assert path.stat().st_size < 40_000
    refuse(path, r'got chunks, decompressed, of 104\d{6} bytes, allowed: at most \d+')


@pytest.mark.attack(
    'a database of a bag with thousands of messages of 8 kB that expand to 240 MB each',
    'refused at 1000 times its size (at least 1 GiB)',
)
def test_all_messages_of_a_bag_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, 'ALWAYS_ALLOWED_FILE_BYTES', 1 << 20)
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3', 'MESSAGE')
    change(file, 'UPDATE messages SET data = ?', zstd.compress(bytes(4 << 20)))
    add = 'INSERT INTO messages(topic_id, timestamp, data) SELECT topic_id, timestamp, data '
    for _ in range(5):
        change(file, f'{add} FROM messages')
    assert file.stat().st_size < 60_000
    refuse(tmp_path / 'bag', r'got messages, decompressed, of \d{8} bytes, allowed: at most \d+')


@pytest.mark.attack(
    'an MCAP file whose index names one chunk a thousand times, at a thousand different times',
    'refused: each byte of the file belongs to one chunk',
)
@pytest.mark.timeout(20)
@pytest.mark.parametrize('step', [0, 1])
def test_a_chunk_is_named_once(tmp_path, step):
    content = bombs.message(0) * 200_000
    path, packed = tmp_path / 'bag.mcap', lz4.compress(content)
    steps = [step * number for number in range(1, 1001)]
    bombs.write_indexed_mcap(path, packed, len(content), 'lz4', steps=steps)
    assert path.stat().st_size < 300_000
    refuse(path, 'its index names two chunks that share the byte')


@pytest.mark.attack(
    'a chunk of an MCAP file with millions of empty messages',
    'refused above 262,144 records',
)
@pytest.mark.parametrize('is_indexed', [True, False])
def test_a_chunk_has_a_limit_of_records(tmp_path, is_indexed):
    content = bombs.message(0) * 300_000
    packed, path = lz4.compress(content), tmp_path / 'bag.mcap'
    if is_indexed:
        bombs.write_indexed_mcap(path, packed, len(content), 'lz4')
    else:
        chunk = bombs.chunk(packed, len(content), 'lz4')
        bombs.write_mcap(path, bombs.schema_and_channel() + chunk)
    assert path.stat().st_size < 300_000
    growth = peak_growth_bytes(lambda: refuse(path, 'a chunk has more than 262144 records'))
    assert growth < 32 << 20


@pytest.mark.attack(
    'an MCAP file with many small chunks, each full of empty records: 17 million in 58 kB',
    'refused above 262,144 records of all chunks, unless the file has 2 bytes for each',
)
@pytest.mark.parametrize('is_indexed', [True, False])
def test_the_records_of_a_file_have_a_limit(tmp_path, is_indexed):
    content = bombs.record(0x7F) * 100_000
    packed, path = zstd.compress(content), tmp_path / 'bag.mcap'
    if is_indexed:
        bombs.write_indexed_mcap(path, packed, len(content), 'zstd', count=4)
    else:
        chunks = bombs.chunk(packed, len(content), 'zstd') * 4
        bombs.write_mcap(path, bombs.schema_and_channel() + chunks)
    assert path.stat().st_size < 20_000
    growth = peak_growth_bytes(lambda: refuse(path, 'it has more than 262144 records'))
    assert growth < 64 << 20


@pytest.mark.attack(
    'an MCAP file of 25 kB without an index, whose chunks hold definitions of 256 MB',
    'refused above 16 MiB of definitions and a 16th of its data, in chunks and outside',
)
@pytest.mark.parametrize('in_chunks', [True, False])
def test_the_definitions_of_a_file_have_a_limit(tmp_path, in_chunks):
    content = bombs.record(3, bombs.number(1, 2), *map(bombs.text, ('T', '', 'a' * (6 << 20))))
    packed, path = zstd.compress(content), tmp_path / 'bag.mcap'
    part = bombs.chunk(packed, len(content), 'zstd') if in_chunks else content
    bombs.write_mcap(path, bombs.schema_and_channel() + part * 3)
    refuse(path, r'got definitions of 1887\d{4} bytes, allowed: at most 1[67]\d{6}')
    assert read_all(bombs.write_mcap(path, part * 2 + bombs.schema_and_channel())) == []


@pytest.mark.attack(
    'a bag of 100 kB, compressed as a file, of 1 GB of empty records or of entries of an index',
    'refused above 262,144 records, unless the bag has 2 bytes for each, or a 16 MiB index',
)
@pytest.mark.parametrize(
    ('record', 'is_index', 'reason'),
    [
        (bombs.record(0x7F), False, 'it has more than 262144 records'),
        (bombs.record(8, bytes(64)), True, r'got an index of \d+ bytes, allowed: at most 16777'),
    ],
    ids=['records', 'index'],
)
def test_a_compressed_file_has_limits_of_its_compressed_size(tmp_path, record, is_index, reason):
    file = bombs.write_bag(tmp_path / 'bag', 'MCAP')
    data, summary = (b'', record * 300_000) if is_index else (record * 600_000, b'')
    bombs.write_mcap(file, data, [summary] if is_index else ())
    packed = file.rename(file.with_name('bag.mcap.zstd'))
    packed.write_bytes(zstd.compress(packed.read_bytes()))
    name_compressed_files(tmp_path / 'bag', [packed.name])
    assert peak_growth_bytes(lambda: refuse(tmp_path / 'bag', reason)) < 48 << 20


@pytest.mark.attack(
    'an MCAP file whose chunks are full of empty messages of one time, and large enough for them',
    'refused if the chunks that share a moment have more than 262,144 messages',
)
def test_the_messages_of_chunks_that_overlap_in_time_have_a_limit(tmp_path):
    content = bombs.message(0, 1) * 100_000 + bombs.record(0x7F, os.urandom(400_000))
    path, packed = tmp_path / 'bag.mcap', zstd.compress(content)
    options = {'count': 4, 'duration_ns': 1}
    bombs.write_indexed_mcap(path, packed, len(content), 'zstd', **options)
    assert limits.max_records(path.stat().st_size) > 400_000
    reason = 'chunks that overlap in time have more than 262144 messages'
    assert peak_growth_bytes(lambda: refuse(path, reason)) < 128 << 20


def test_messages_of_chunks_one_after_the_other_do_not_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(mcap_chunks, 'MAX_RECORDS', 3)
    store = get_typestore(Stores.ROS2_HUMBLE)
    text = store.types['std_msgs/msg/String']('a' * 600_000)
    with Writer(tmp_path / 'bag', version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection('/text', text.__msgtype__, typestore=store)
        data = store.serialize_cdr(text, text.__msgtype__)
        for number in range(8):
            writer.write(connection, number, data)
    assert [message.log_time_ns for message in read_all(tmp_path / 'bag')] == list(range(8))


@pytest.mark.attack(
    'a bag that is compressed as a file, with millions of empty messages',
    'refused above 262,144 messages, unless the bag has 2 bytes for each',
)
def test_the_messages_of_a_bag_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, 'MAX_RECORDS', 100)
    monkeypatch.setattr(limits, 'BYTES_PER_RECORD', 100)
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3', 'FILE')
    plain = tmp_path / 'plain.db3'
    plain.write_bytes(zstd.decompress(file.read_bytes()))
    numbers = 'WITH RECURSIVE n(i) AS (VALUES(2) UNION ALL SELECT i + 1 FROM n WHERE i < 5000)'
    change(plain, f"{numbers} INSERT INTO messages SELECT i, 1, 1, x'' FROM n")
    file.write_bytes(zstd.compress(plain.read_bytes(), 19))
    plain.unlink()
    refuse(tmp_path / 'bag', r'it has more than \d+ messages')


@pytest.mark.attack(
    'a compressed file of a bag that would fill the disk or the memory under /tmp',
    'decompressed up to 1000 times its size and half of the free space, then removed',
)
def test_a_file_is_decompressed_up_to_a_limit(tmp_path, monkeypatch):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3', 'FILE')
    file.write_bytes(bombs.zstd_of_zeros(1 << 15, claimed=FOUR_GB)[:16_000])
    monkeypatch.setattr(limits, 'ALWAYS_ALLOWED_FILE_BYTES', 1 << 20)
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    refuse(tmp_path / 'bag', r'got files, decompressed, of \d+ bytes, allowed: at most 1\d{7};')
    assert [path.name for path in tmp_path.iterdir()] == ['bag']


@pytest.mark.attack(
    'a bag of 392 kB of many compressed files, each of which expands to 1 GiB',
    'all its files, decompressed, have at most 1000 times its size (at least 1 GiB) together',
)
def test_the_files_of_a_bag_have_a_limit_together(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, 'ALWAYS_ALLOWED_FILE_BYTES', 5 << 20)
    monkeypatch.setattr(limits, 'MAX_FILE_RATIO', 1)
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    file = bombs.write_bag(tmp_path / 'bag', 'MCAP')
    bombs.write_mcap(file, bombs.schema_and_channel() + bombs.message(2 << 20))
    packed = zstd.compress(file.read_bytes())
    for count in (2, 3):
        names = [f'{number}.mcap.zstd' for number in range(count)]
        for name in names:
            file.with_name(name).write_bytes(packed)
        name_compressed_files(tmp_path / 'bag', names)
        if count == 2:
            with BagReader(tmp_path / 'bag'):
                pass
    refuse(tmp_path / 'bag', r'got files, decompressed, of \d+ bytes, allowed: at most 5242880;')
    assert [path.name for path in tmp_path.iterdir()] == ['bag']


@pytest.mark.attack(
    'a bag of 43 kB of many compressed files, each of which has an index or definitions of 16 MiB',
    'those of all files have at most 16 MiB and a 16th of the bag together',
)
@pytest.mark.parametrize('is_indexed', [True, False])
def test_the_indexes_of_a_bag_have_a_limit_together(tmp_path, monkeypatch, is_indexed):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    file = bombs.write_bag(tmp_path / 'bag', 'MCAP')
    if not is_indexed:
        bombs.write_mcap(file, bombs.schema_and_channel() + bombs.message(1))
    packed = zstd.compress(file.read_bytes())
    file.unlink()
    names = [f'{number}.mcap.zstd' for number in range(40)]
    for name in names:
        file.with_name(name).write_bytes(packed)
    name_compressed_files(tmp_path / 'bag', names)
    with BagReader(tmp_path / 'bag'):
        pass
    monkeypatch.setattr(limits, 'MIN_INDEX_BYTES', 2000)
    monkeypatch.setattr(limits, 'INDEX_RATIO', 1 << 20)
    reason = r'got indexes or definitions of all files of \d+ bytes, allowed: at most 2000'
    refuse(tmp_path / 'bag', reason)


def test_half_of_the_free_space_is_left():
    assert limits.max_file_bytes(10, 1 << 40) == 1 << 30
    assert limits.max_file_bytes(10 << 20, 1 << 40) == 10_000 << 20
    assert limits.max_file_bytes(10 << 20, 1 << 30) == 1 << 29


@pytest.mark.attack(
    'lengths of 2^60 bytes in the records of an MCAP file',
    'the bag is refused as damaged',
)
@pytest.mark.parametrize('kind', range(1, 16))
def test_a_length_that_is_a_lie_takes_no_memory(tmp_path, kind):
    huge = bytes([kind]) + bombs.number(1 << 60, 8)
    for number, (data, summary) in enumerate(
        [(huge, ()), (bombs.schema_and_channel(), [bombs.schema_and_channel(), huge])]
    ):
        path = bombs.write_mcap(tmp_path / f'{number}.mcap', data, summary)
        errors: list[str] = []
        growth = peak_growth_bytes(lambda path=path, errors=errors: errors.append(error_of(path)))
        assert growth < 16 << 20
        assert '\n' not in errors[0]


def error_of(bag: Path) -> str:
    try:
        read_all(bag)
    except ConfigError as err:
        return str(err)
    return ''


@pytest.mark.attack(
    'a bag of thousands of topics, each of which is compared with each',
    'refused above 4096 topics',
)
def test_topics_have_a_limit(tmp_path):
    channels = b''.join(bombs.schema_and_channel(number) for number in range(1, 5001))
    refuse(bombs.write_mcap(tmp_path / 'a.mcap', channels), 'got 5000 topics, allowed: at most')
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    change(
        file,
        'WITH RECURSIVE n(i) AS (VALUES(2) UNION ALL SELECT i + 1 FROM n WHERE i < 5000) INSERT '
        'INTO topics SELECT i, i, "std_msgs/msg/String", "cdr", "", "" FROM n',
    )
    refuse(file, 'got 5000 topics, allowed: at most 4096')


@pytest.mark.attack(
    'a bag of sqlite3 whose table is a view, or has a column, that computes without end',
    'refused: every row must be in the file',
)
@pytest.mark.parametrize(
    ('statements', 'reason'),
    [
        (
            [
                'DROP TABLE message_definitions',
                'CREATE VIEW message_definitions AS WITH RECURSIVE n(id) AS (VALUES(1) UNION ALL '
                'SELECT id + 1 FROM n) SELECT id, "a" AS topic_type, "ros2msg" AS encoding, "" AS '
                'encoded_message_definition, "" AS type_description_hash FROM n',
            ],
            "got 'message_definitions', allowed: tables",
        ),
        (
            [
                'DROP TABLE messages',
                'CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp '
                'INTEGER, data BLOB GENERATED ALWAYS AS (zeroblob(900000000)) VIRTUAL)',
                'INSERT INTO messages VALUES (1, 1, 1)',
            ],
            "got a computed column of 'messages'",
        ),
    ],
)
def test_a_database_that_computes_is_refused(tmp_path, statements, reason):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    for statement in statements:
        change(file, statement)
    growth = peak_growth_bytes(lambda: (refuse(file, reason), refuse(tmp_path / 'bag', reason)))
    assert growth < 16 << 20


@pytest.mark.attack(
    'a database of 3 MB whose messages belong to each of a thousand topics, with ids such as 01',
    'refused: ids are whole numbers',
)
@pytest.mark.parametrize(('table', 'column'), [('topics', 'id'), ('messages', 'topic_id')])
def test_ids_of_a_database_are_numbers(tmp_path, table, column):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    with closing(sqlite3.connect(file)) as database, database:
        infos = list(database.execute(f'PRAGMA table_info({table})'))
    columns = ', '.join(f'{name} {kind}' for _, name, kind, *_ in infos)
    change(file, f'ALTER TABLE {table} RENAME TO old')
    change(file, f'CREATE TABLE {table} ({columns})')
    change(file, f'INSERT INTO {table} SELECT * FROM old')
    change(file, 'DROP TABLE old')
    assert read_all(tmp_path / 'bag')
    rename = "UPDATE sqlite_master SET sql = replace(sql, '{0} {1}', '{0} {2}') WHERE name = '{3}'"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute('PRAGMA writable_schema=ON')
        database.execute(rename.format(column, 'INTEGER', 'TEXT', table))
    refuse(tmp_path / 'bag', f"{table}.{column}: got the type 'TEXT', allowed: INTEGER")
    change(file, f"UPDATE {table} SET {column} = '0' || {column}")
    with closing(sqlite3.connect(file)) as database, database:
        database.execute('PRAGMA writable_schema=ON')
        database.execute(rename.format(column, 'TEXT', 'INTEGER', table))
    refuse(tmp_path / 'bag', f'got [0-9]+ values of {table}.{column}, allowed: of type integer')


@pytest.mark.parametrize(
    ('table', 'column', 'value'),
    [('topics', 'name', "x'00'"), ('topics', 'type', '7'), ('messages', 'data', "'text'")],
)
def test_values_of_a_database_have_their_type(tmp_path, table, column, value):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    with closing(sqlite3.connect(file)) as database, database:
        database.execute('PRAGMA writable_schema=ON')
        database.execute("UPDATE sqlite_master SET sql = replace(sql, ' TEXT', ' BLOB')")
    change(file, f'UPDATE {table} SET {column} = {value}')
    refuse(tmp_path / 'bag', f'values of {table}.{column}, allowed: of type')


def test_compressed_files_of_a_bag_have_different_names(tmp_path):
    bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    for name in ('bag.db3.a', 'bag.db3.b'):
        (tmp_path / 'bag' / name).touch()
    name_compressed_files(tmp_path / 'bag', ['bag.db3.a', 'bag.db3.b'])
    refuse(tmp_path / 'bag', 'two files that are decompressed to one name')


@pytest.mark.attack(
    'a bag of sqlite3 with a journal or a write-ahead log, which changes its messages for others',
    'refused, with the command that completes the database',
)
@pytest.mark.parametrize('mode', ['wal', 'delete'])
def test_a_database_that_was_not_closed_is_refused(tmp_path, mode):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    recorder = (
        'import os, sqlite3, sys\n'
        'database = sqlite3.connect(sys.argv[1], isolation_level=None)\n'
        f'database.execute("PRAGMA journal_mode={mode}")\n'
        'database.execute("PRAGMA cache_spill=1")\n'
        'database.execute("PRAGMA cache_size=1")\n'
        'database.execute("BEGIN")\n'
        'database.execute("UPDATE messages SET data = zeroblob(90000)")\n'
        'if sys.argv[2] == "wal": database.execute("COMMIT")\n'
        'os.kill(os.getpid(), 9)\n'
    )
    subprocess.run([sys.executable, '-c', recorder, file, mode], check=False)
    suffix = {'wal': '-wal', 'delete': '-journal'}[mode]
    refuse(tmp_path / 'bag', f'{suffix}. is beside it, .* with `sqlite3 ./DATABASE vacuum`')
    with closing(sqlite3.connect(file)) as database:
        database.execute('VACUUM')
    assert read_all(tmp_path / 'bag')


@pytest.mark.attack(
    'a bag beside whose database lies a journal that names a file to delete, or a link',
    'refused, without the command that completes a database: SQLite would delete or write it',
)
@pytest.mark.parametrize('kind', ['names a file', 'link', 'hard link'])
def test_what_sqlite_would_delete_or_write_is_not_recommended_to_it(tmp_path, kind):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    beside = file.with_name(f'{file.name}-wal')
    kept = tmp_path / 'kept'
    kept.write_bytes(b'of the user')
    if kind == 'names a file':
        beside = file.with_name(f'{file.name}-journal')
        beside.write_bytes(b'a journal' + JOURNAL_MAGIC)
    elif kind == 'link':
        beside.symlink_to(kept)
    else:
        beside.hardlink_to(kept)
    with pytest.raises(ConfigError) as raised:
        read_all(tmp_path / 'bag')
    assert beside.name in str(raised.value)
    assert 'vacuum' not in str(raised.value)


@pytest.mark.attack(
    'the database of a bag that is not closed has a name with commands for a shell',
    'the message has the command that completes it, without the name',
)
@pytest.mark.parametrize('name', ['-init', '$(touch x).db3'])
def test_the_name_of_a_database_is_not_part_of_a_command(tmp_path, name):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    file = file.rename(file.with_name(name))
    metadata = tmp_path / 'bag' / 'metadata.yaml'
    metadata.write_text(metadata.read_text().replace('bag.db3', name))
    file.with_name(f'{name}-wal').write_bytes(b'x')
    refuse(tmp_path / 'bag', r'with `sqlite3 \./DATABASE vacuum`')


@pytest.mark.attack(
    'a bag of sqlite3 of 50 kB whose pages name one page a hundred times: 100 million rows',
    'refused: the rows of a database have no more bytes than its pages',
)
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ('name', 'kind'),
    [('messages', 'table'), ('topics', 'table'), ('schema', 'table'), ('timestamp_idx', 'index')],
)
def test_a_page_that_is_named_again_and_again_is_refused(tmp_path, name, kind):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    page_bombs.repeat_pages(file, name, kind)
    assert file.stat().st_size < 50_000
    reason = f"got rows in '{name}' that would need more than the 45056 bytes of the file"
    refuse(file, reason)
    refuse(tmp_path / 'bag', reason)


@pytest.mark.attack(
    'such a bag whose file seems to have gigabytes: it has a hole, or is compressed',
    'refused: rows have no more bytes than are on the disk, and a number that follows from them',
)
@pytest.mark.timeout(20)
def test_pages_that_are_only_claimed_hold_no_rows(tmp_path):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3', 'FILE')
    plain = tmp_path / 'plain.db3'
    plain.write_bytes(zstd.decompress(file.read_bytes()))
    page_bombs.repeat_pages(plain, 'messages')
    small = plain.read_bytes()
    page_bombs.claim_pages(plain, (64 << 20) // 4096)
    file.write_bytes(zstd.compress(plain.read_bytes()))
    refuse(tmp_path / 'bag', 'got more than 270336 rows')
    plain.write_bytes(small)
    page_bombs.claim_pages(plain, (1 << 40) // 4096)
    assert stored_bytes(plain) <= 2 * len(small)
    refuse(plain, "got rows in 'messages' that would need more than the .* bytes of the file")


@pytest.mark.attack(
    'a bag of sqlite3 whose schema names one page a hundred times on each of four levels',
    'refused after a million steps of SQLite',
)
@pytest.mark.timeout(20)
def test_a_schema_without_end_is_refused(tmp_path):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    page_bombs.make_schema_endless(file)
    refuse(file, 'got a schema without end, allowed: tables and indices')


@pytest.mark.attack(
    'a bag of sqlite3 whose messages of megabytes all lie in the same pages',
    'refused: the rows of a database have no more bytes than its pages',
)
def test_messages_do_not_share_pages(tmp_path):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    change(file, 'DELETE FROM messages')
    size = 480 + 250 * 4092  # the last part fills its page
    for number in range(7):
        change(file, 'INSERT INTO messages VALUES (?, 1, 1, zeroblob(?))', number + 1, size)
    assert len(read_all(file)) == 7
    whole = page_bombs.Pages(file, 'messages')
    page_bombs.share_long_value(file, 'messages')
    assert [len(message.data) for message in read_all(file)] == [size] * 7
    # Six of seven values need no pages of their own any more.
    page_bombs.cut(file, whole.count - 6 * 250)
    refuse(file, "got rows in 'messages' that would need more than the")


@pytest.mark.attack(
    'a bag of sqlite3 with 4,000 topics of one id, each of which is joined with every message',
    'refused: each topic has its own id',
)
@pytest.mark.timeout(20)
def test_topics_of_one_id_are_refused(tmp_path):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    change(file, 'DROP TABLE topics')
    columns = 'name, type, serialization_format, offered_qos_profiles, type_description_hash'
    change(file, f'CREATE TABLE topics(id INTEGER, {columns})')
    numbers = 'WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {})'
    change(
        file,
        f'{numbers.format(4000)} INSERT INTO topics SELECT 1, "/t", "std_msgs/msg/String", "cdr", '
        '"", "" FROM n',
    )
    change(file, f'{numbers.format(100_000)} INSERT INTO messages SELECT i + 9, 1, 1, "" FROM n')
    refuse(file, 'got 4000 rows of topics with 1 ids, allowed: one each')


@pytest.mark.attack(
    'a database with a schema of megabytes, such as a definition of a table that is mostly '
    'spaces, or with tables of thousands of columns that no row holds',
    'refused when it is opened: a schema has up to 256 KiB, a table up to 64 columns',
)
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ('statements', 'reason'),
    [
        ([f'CREATE TABLE a (b{" " * (8 << 20)})'], 'got a schema of 8389.* bytes, allowed: up to'),
        ([f'CREATE TABLE a{i} (b{" " * 99_999})' for i in range(3)], 'got a schema of 30.* bytes'),
        (
            [f'ALTER TABLE messages ADD x{i}' for i in range(100)],
            "got 104 columns in 'messages', allowed: up to 64",
        ),
    ],
    ids=['statement', 'tables', 'columns'],
)
def test_a_schema_has_a_largest_size(tmp_path, statements, reason):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    for statement in statements:
        change(file, statement)
    growth = peak_growth_bytes(lambda: refuse(file, reason))
    assert growth < 64 << 20


@pytest.mark.attack(
    'a bag of sqlite3 with a message, a type or a definition of hundreds of megabytes',
    'refused by its size, before it is read: 256 MiB a message, 1 MiB a text',
)
@pytest.mark.parametrize(
    ('statement', 'reason'),
    [
        ('UPDATE messages SET data = zeroblob(300000000)', 'messages of 300000000 bytes, allowed'),
        ('UPDATE topics SET type = zeroblob(300000000)', 'in topics of 300000000 bytes, allowed'),
        (
            'UPDATE message_definitions SET encoded_message_definition = '
            "printf('%.*c', 99999999, 'a')",
            "message_definitions'? of (more than 1048576|99999999)",
        ),
    ],
)
def test_values_in_a_database_have_a_size(tmp_path, statement, reason):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    change(file, statement)
    growth = peak_growth_bytes(lambda: refuse(file, reason))
    assert growth < (16 << 20 if hasattr(sqlite3.Connection, 'setlimit') else 256 << 20)


@pytest.mark.parametrize(
    ('old', 'new', 'reason'),
    [
        ('version: 8', 'version: &a 8\n  ros_distro: *a', r'line \d+: got an alias'),
        ('version: 8', f'version: {"[" * 90_000}', 'nested 33 deep'),
        ('version: 8', f'version: 0x{"f" * 9000}', 'got a number of 9002 characters'),
        (
            "offered_qos_profiles: ''",
            f'offered_qos_profiles: {json.dumps(ALIASES)}',
            'got an alias',
        ),
        ('relative_file_paths:', 'relative_file_paths:\n  - bag.mcap', 'names a file twice'),
    ],
    ids=['alias', 'deep', 'digits', 'profiles', 'twice'],
)
def test_metadata_that_is_a_bomb_is_refused(tmp_path, old, new, reason):
    bombs.write_bag(tmp_path / 'bag', 'MCAP')
    metadata = tmp_path / 'bag' / 'metadata.yaml'
    content = metadata.read_text()
    assert old in content
    metadata.write_text(content.replace(old, new, 1))
    refuse(tmp_path / 'bag', reason)


def test_metadata_has_a_largest_size(tmp_path):
    bombs.write_bag(tmp_path / 'bag', 'MCAP')
    with (tmp_path / 'bag' / 'metadata.yaml').open('ab') as file:
        file.truncate(1 << 40)
    refuse(tmp_path / 'bag', 'got 1099511627776 bytes, allowed: at most 1048576')


def test_profiles_of_a_topic_are_plain_yaml(tmp_path):
    mcap = bombs.write_mcap(tmp_path / 'a.mcap', bombs.schema_and_channel(qos=ALIASES))
    refuse(mcap, r'line 2: got an alias')
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    change(file, 'UPDATE topics SET offered_qos_profiles = ?', ALIASES)
    refuse(file, r'line 2: got an alias')


def test_an_image_file_has_a_largest_size(tmp_path):
    path = tmp_path / 'n015__CAM_FRONT__1533280036154844.jpg'
    with path.open('wb') as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match='cannot be read: got 1099511627776 bytes, allowed: at'):
        read_image(path, root=path.parent, camera='CAM_FRONT', stamp_ns=0)


def test_a_file_name_that_stands_for_another_is_refused(tmp_path):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    odd = file.rename(file.with_name('a%62.db3'))
    metadata = tmp_path / 'bag' / 'metadata.yaml'
    metadata.write_text(metadata.read_text().replace(file.name, odd.name))
    refuse(tmp_path / 'bag', 'allowed: without %')


@pytest.mark.parametrize('suffix', ['.mcap', '.db3'])
def test_a_pipe_in_place_of_a_bag_is_refused_without_a_wait(tmp_path, suffix):
    storage = {'.mcap': 'MCAP', '.db3': 'SQLITE3'}[suffix]
    file = bombs.write_bag(tmp_path / 'bag', storage)
    file.unlink()
    os.mkfifo(file)
    refuse(tmp_path / 'bag', 'is no plain file')
    with pytest.raises(ConfigError, match='which is no plain file'):
        read_all(file)


def test_a_profile_that_lacks_a_key_is_told(tmp_path):
    mcap = bombs.write_mcap(tmp_path / 'a.mcap', bombs.schema_and_channel(qos='- {history: 1}\n'))
    refuse(mcap, "KeyError: '")


def test_the_qos_profiles_of_a_topic_have_a_limit(tmp_path):
    profiles = '- {history: 1, depth: 1}\n' * 2000
    mcap = bombs.write_mcap(tmp_path / 'a.mcap', bombs.schema_and_channel(qos=profiles))
    refuse(mcap, 'the QoS profiles of a topic of 50000 bytes, allowed: at most 16384')


@pytest.mark.attack(
    'a bag of thousands of topics, each with another text of QoS profiles that is slow to parse',
    'refused: the different ones have up to 256 KiB together; each is parsed once',
)
def test_the_qos_profiles_of_a_bag_have_a_limit_together(tmp_path, monkeypatch):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    change(file, 'UPDATE topics SET offered_qos_profiles = ?', PROFILE)
    add = 'INSERT INTO topics SELECT ?, ?, type, serialization_format, ?, "" FROM topics LIMIT 1'
    for number in range(100):
        change(file, add, number + 10, f'/same_{number}', PROFILE)
    monkeypatch.setattr(limits, 'MAX_PROFILES_BYTES', len(PROFILE) + 9)
    assert len(read_all(file)) == 1
    change(file, add, 9, '/other', f'{PROFILE} # other')
    refuse(file, 'got the QoS profiles of all topics of .* bytes, allowed: at most')


@pytest.mark.attack(
    'an MCAP file of some kilobytes (sparse) whose header, schema, message or index claims 3 GiB',
    'refused by the size that a record claims, before it is read',
)
@pytest.mark.parametrize('place', ['header', 'schema', 'message', 'index'])
def test_a_record_has_a_largest_size(tmp_path, place):
    path, size = tmp_path / 'bag.mcap', 3 << 30
    bombs.write_sparse_mcap(path, place, size)
    reason = r'got (a record|an index|definitions) of 3\d{9} bytes, allowed: at most'
    assert peak_growth_bytes(lambda: refuse(path, reason)) < 16 << 20


@pytest.mark.attack(
    'a bag whose file is a link to a bag of the user, which is played or converted for others',
    'refused: the files of a bag lie in its folder',
)
@pytest.mark.parametrize('kind', ['MCAP', 'SQLITE3'])
def test_a_bag_does_not_lead_out_of_its_folder(tmp_path, kind):
    file = bombs.write_bag(tmp_path / 'bag', kind)
    file.rename(tmp_path / file.name)
    file.symlink_to(tmp_path / file.name)
    refuse(tmp_path / 'bag', f'.{file.name}. is a link that leads out of its folder')


@pytest.mark.attack(
    'a file of a bag with a name that one version of YAML takes for text and another for true',
    'the metadata are read by the parser that they are checked with; names are texts',
)
@pytest.mark.parametrize('name', ['on', 'yes', 'no', '012', '1:30', '~'])
def test_names_of_files_are_read_as_they_are_checked(tmp_path, name):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    private = file.rename(tmp_path / 'private.db3')
    (tmp_path / 'bag' / name).symlink_to(private)
    metadata = tmp_path / 'bag' / 'metadata.yaml'
    metadata.write_text(metadata.read_text().replace(f'- {file.name}', f'- {name}', 1))
    refuse(tmp_path / 'bag', 'relative_file_paths: got .* allowed: texts')
    with pytest.raises(YAMLError, match='an alias'):
        limits.reader.YAML(typ='safe').load('a: &a 1\nb: *a')


@pytest.mark.attack(
    'a bag that names its one file hundreds of times, by other folders or hard links',
    'refused: each file is named once',
)
@pytest.mark.parametrize('other', ['d0/{}', './{}', 'link'])
def test_a_file_of_a_bag_is_named_once(tmp_path, other):
    file = bombs.write_bag(tmp_path / 'bag', 'SQLITE3')
    os.link(file, tmp_path / 'bag' / 'link')
    metadata = tmp_path / 'bag' / 'metadata.yaml'
    both = f'- {file.name}\n  - {other.format(file.name)}'
    content = metadata.read_text()
    assert f'  - {file.name}' in content
    metadata.write_text(content.replace(f'- {file.name}', both, 1))
    refuse(tmp_path / 'bag', 'metadata.yaml names a file twice')
