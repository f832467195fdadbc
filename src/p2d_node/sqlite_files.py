"""Refuses SQLite databases that would act when they are opened, read or written.

SQLite evaluates the expressions in a database's schema, and does what the files beside it say.
"""

from __future__ import annotations

import os
from pathlib import Path
import re
import sqlite3

from p2d_node.errors import quote

JOURNAL = '-journal'
SIDE_FILES = (JOURNAL, '-wal', '-shm')
"""Endings of the files that SQLite keeps beside a database, and writes to."""

JOURNAL_MAGIC = bytes.fromhex('d9d505f920a163d7')
"""The last bytes of a journal that names a super-journal, which SQLite deletes after a crash. Only
a transaction over several databases has one (sqlite.org/atomiccommit.html, section 5)."""

ODD_OBJECTS = """
SELECT name FROM sqlite_master WHERE NOT (type IN ('table', 'index') AND rootpage > 0)
"""
"""Views, triggers and virtual tables: they compute rows, or run statements of their own."""

COMPUTED_COLUMNS = """
SELECT part.name FROM sqlite_master AS part, pragma_table_xinfo(part.name) AS column
WHERE part.type = 'table' AND column.hidden
"""

STATEMENTS = 'SELECT type, name, CAST(sql AS TEXT) FROM sqlite_master WHERE sql IS NOT NULL'

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

EXPRESSIONS = re.compile(r'\b(AS|CHECK|DEFAULT|WHERE)\b', re.IGNORECASE)


def check_side_files(path: Path) -> None:
    """Check the files beside a database, before it is opened.

    Raises:
        ValueError: One of them is no plain file, or is a journal that names another file.
        OSError: The journal cannot be read.
    """
    place = os.path.realpath(path)  # SQLite, too, follows links to the database
    for suffix in SIDE_FILES:
        name = f'{place}{suffix}'
        if os.path.lexists(name) and (os.path.islink(name) or not os.path.isfile(name)):
            raise ValueError(f'got {quote(name)}, which is no plain file')
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


def check_rows_are_stored(database: sqlite3.Connection) -> None:
    """Check that a database has only tables that hold their rows, and indices.

    Raises:
        ValueError: It has a view, a trigger, a virtual table, a computed column or an expression.
        sqlite3.Error: It cannot be read.
    """
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
