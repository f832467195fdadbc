"""Refuses SQLite databases that would act when they are opened, read or written.

SQLite evaluates the expressions in a database's schema, and does what the files beside it say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import re
import sqlite3
import stat
import sys

from p2d_node.errors import quote
from p2d_node.sparse_files import SPARSE, stored_bytes

JOURNAL, WAL = '-journal', '-wal'
SIDE_FILES = (JOURNAL, WAL, '-shm')
"""Endings of the files that SQLite keeps beside a database, and writes to."""

JOURNAL_MAGIC = bytes.fromhex('d9d505f920a163d7')
"""The last bytes of a journal that names a super-journal, which SQLite deletes after a crash. Only
a transaction over several databases has one (sqlite.org/atomiccommit.html, section 5)."""

ODD_OBJECTS = """
SELECT name FROM sqlite_master WHERE NOT (type IN ('table', 'index') AND rootpage > 0)
"""
"""Views, triggers and virtual tables: they compute rows, or run statements of their own."""

MAX_COLUMNS = 64
"""Of a table; rosbag2's and Optuna's have up to ten. A row need not hold the last ones."""

COMPUTED_COLUMNS = """
SELECT part.name FROM sqlite_master AS part, pragma_table_xinfo(part.name) AS column
WHERE part.type = 'table' AND column.hidden
"""

STATEMENTS = 'SELECT type, name, CAST(sql AS TEXT) FROM sqlite_master WHERE sql IS NOT NULL'

MAX_SCHEMA_BYTES = 1 << 18
"""Of all statements of a schema. Optuna's take 3,300; each connection reads them."""

SCHEMA_BYTES = 'SELECT total(length(CAST(sql AS BLOB))) FROM sqlite_master'

CONSTANTS = re.compile(
    r"""\bDEFAULT (\w+|'\w+')|\bCHECK \(\w+ ?(= ?\d+|IN \('\w+'(, '\w+')*\))\)""", re.IGNORECASE
)
"""Defaults and lists of allowed values, as Optuna's tables have them."""

PLAIN_STATEMENTS = {
    'table': re.compile(
        r'CREATE TABLE [\w"]+\s*\(([\w\s",]|\([\w\s",]*\))*\)[\w\s,]*', re.IGNORECASE
    ),
    'index': re.compile(r'CREATE (UNIQUE )?INDEX [\w"]+ ON [\w"]+\s*\([\w\s",]*\)', re.IGNORECASE),
}
"""They hold names and numbers. A call of a function would need further parentheses."""

MAX_SCHEMA_STEPS = 1_000_000
"""Of SQLite's virtual machine, for a statement about the schema. Optuna's takes about 10,000."""

OBJECTS = 'SELECT type, name, tbl_name FROM sqlite_master'

MIN_ROW_BYTES, MIN_ENTRY_BYTES = 5, 6
"""Of a row of a table without its columns, each of which takes a byte or more, and of an entry of
an index (sqlite.org/fileformat.html, sections 1.6 and 2)."""

MAX_TEXT_BYTES = 1 << 20
"""Of a text, such as a name, a definition of a message type, or settings of a study."""

SQLITE_LIMIT_LENGTH = 0
"""Number of the limit of a value's size (sqlite.org/c3ref/c_limit_attached.html)."""

EXPRESSIONS = re.compile(r'\b(AS|CHECK|DEFAULT|WHERE)\b', re.IGNORECASE)


def check_side_files(path: Path) -> None:
    """Check the files beside a database, before it is opened.

    Raises:
        ValueError: One of them is no plain file, has another name, or is a journal that names
            another file.
        OSError: The journal cannot be read.
    """
    place = os.path.realpath(path)  # SQLite, too, follows links to the database
    for suffix in SIDE_FILES:
        name = f'{place}{suffix}'
        try:
            status = os.lstat(name)
        except FileNotFoundError:  # or another process has just ended its transaction
            continue
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise ValueError(f'got {quote(name)}, which is no plain file, or has another name')
    if _last_bytes(Path(f'{place}{JOURNAL}')) == JOURNAL_MAGIC:
        raise ValueError(
            f'got {quote(f"{place}{JOURNAL}")}, which names another file to delete, allowed: a '
            'journal of this database alone'
        )


def _last_bytes(path: Path) -> bytes:
    try:
        with path.open('rb') as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - len(JOURNAL_MAGIC)))
            return file.read(len(JOURNAL_MAGIC))
    except FileNotFoundError:  # another process has just ended its transaction
        return b''


def check_rows_are_stored(
    database: sqlite3.Connection, path: Path, *, max_rows: int, max_bytes: int = sys.maxsize
) -> None:
    """Check that a database has only tables that hold their rows, and indices.

    It reads all rows, but no blobs.

    Args:
        database: An open database.
        path: Its file.
        max_rows: The largest number of rows of all tables, and of entries of an index.
        max_bytes: The largest number of bytes in them.

    Raises:
        ValueError: It has a view, a trigger, a virtual table, a computed column, an expression,
            a schema above `MAX_SCHEMA_BYTES`, more than `MAX_COLUMNS` columns, a text
            above `MAX_TEXT_BYTES`, or more rows than `max_rows`, `max_bytes`, its pages or
            its bytes on the disk hold.
        sqlite3.Error: It cannot be read.
        OSError: Its files cannot be opened.
    """
    # The schema is rows, too, and SQLite reads it before the first statement.
    database.set_progress_handler(lambda: 1, MAX_SCHEMA_STEPS)
    try:
        _check_schema(database)
    except sqlite3.OperationalError as err:
        if str(err) != 'interrupted':
            raise
        raise ValueError('got a schema without end, allowed: tables and indices') from None
    finally:
        database.set_progress_handler(None, 0)
    _check_rows_fit(database, _content_bytes(database, path), max_rows, max_bytes)


def _content_bytes(database: sqlite3.Connection, path: Path) -> int:
    """Return how many bytes all rows may have together."""
    ((num_pages,),) = database.execute('PRAGMA page_count')
    ((page_bytes,),) = database.execute('PRAGMA page_size')
    # The number of pages is what a file says, the database or that with its last pages.
    stored = sum(stored_bytes(Path(f'{path}{suffix}')) for suffix in ('', WAL))
    return min(int(num_pages) * int(page_bytes), SPARSE * stored)


def _check_schema(database: sqlite3.Connection) -> None:
    ((num_bytes,),) = database.execute(SCHEMA_BYTES)
    if num_bytes > MAX_SCHEMA_BYTES:
        raise ValueError(
            f'got a schema of {num_bytes:.0f} bytes, allowed: up to {MAX_SCHEMA_BYTES}'
        )
    odd = database.execute(ODD_OBJECTS).fetchone()
    if odd is not None:
        raise ValueError(f'got {quote(odd[0])}, allowed: tables and indices that hold their rows')
    computed = database.execute(COMPUTED_COLUMNS).fetchone()
    if computed is not None:
        raise ValueError(
            f'got a computed column of {quote(computed[0])}, allowed: columns in the file'
        )
    for kind, name, statement in database.execute(STATEMENTS):
        rest = CONSTANTS.sub('', statement)
        if not PLAIN_STATEMENTS[kind].fullmatch(rest) or EXPRESSIONS.search(rest):
            raise ValueError(
                f'got an expression in {quote(name)}, allowed: names of columns and their types'
            )


def _check_rows_fit(
    database: sqlite3.Connection, content_bytes: int, max_rows: int, max_bytes: int
) -> None:
    """Check that no page is read again and again, as the page of many others or of many values.

    Then the rows would together have more bytes than the file.
    """
    objects = database.execute(OBJECTS).fetchall()
    left = content_bytes
    num_rows = num_row_bytes = 0
    for kind, name, table in objects:
        num_entries = 0
        if kind == 'index':
            max_entries = min(max_rows, left // MIN_ENTRY_BYTES)
            num_entries = _count_entries(database, name, table, max_entries + 1)
            left -= MIN_ENTRY_BYTES * num_entries
        for num_bytes in _row_sizes(database, name) if kind == 'table' else ():
            left -= num_bytes
            num_rows, num_row_bytes = num_rows + 1, num_row_bytes + num_bytes
            if left < 0 or num_rows > max_rows or num_row_bytes > max_bytes:
                break
        for is_over, allowed in (
            (max(num_rows, num_entries) > max_rows, f'{max_rows} rows'),
            (num_row_bytes > max_bytes, f'{max_bytes} bytes in its rows'),
        ):
            if is_over:
                raise ValueError(f'got more than {allowed}, allowed: at most as many')
        if left < 0:
            raise ValueError(
                f'got rows in {quote(name)} that would need more than the {content_bytes} bytes '
                'of the file, allowed: each page is of one row or one group of rows'
            )


def _count_entries(database: sqlite3.Connection, name: str, table: str, most: int) -> int:
    """Return the number of entries of an index, or `most`."""
    entries = f'SELECT 1 FROM {quoted(table)} INDEXED BY {quoted(name)} LIMIT ?'
    ((num_entries,),) = database.execute(f'SELECT count(*) FROM ({entries})', [most])
    return int(num_entries)


def _row_sizes(database: sqlite3.Connection, name: str) -> Iterator[int]:
    """Yield the sizes of the rows of a table."""
    columns = [column for _, column, *_ in database.execute(f'PRAGMA table_info({quoted(name)})')]
    if len(columns) > MAX_COLUMNS:
        raise ValueError(
            f'got {len(columns)} columns in {quote(name)}, allowed: up to {MAX_COLUMNS}'
        )
    sizes = [
        f"CASE WHEN typeof({c}) IN ('text', 'blob') THEN length({c}) ELSE 0 END"
        for c in map(quoted, columns)
    ]
    min_bytes = MIN_ROW_BYTES + len(columns)
    rows = f'SELECT {min_bytes} + {" + ".join(sizes)} FROM {quoted(name)} NOT INDEXED'
    with _limited_texts(database):
        try:
            for (num_bytes,) in database.execute(rows):
                yield num_bytes
        except sqlite3.DataError:
            raise ValueError(
                f'got a text in {quote(name)} of more than {MAX_TEXT_BYTES} bytes'
            ) from None


def quoted(name: str) -> str:
    """Return a name as SQL takes it."""
    return '"{}"'.format(name.replace('"', '""'))


@contextmanager
def _limited_texts(database: sqlite3.Connection) -> Iterator[None]:
    if not hasattr(database, 'setlimit'):  # before Python 3.11
        yield
        return
    before = database.setlimit(SQLITE_LIMIT_LENGTH, MAX_TEXT_BYTES)
    try:
        yield
    finally:
        database.setlimit(SQLITE_LIMIT_LENGTH, before)
