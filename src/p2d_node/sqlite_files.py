"""Refuses SQLite databases whose rows are not in the file: a query of them may never end."""

from __future__ import annotations

import sqlite3

from p2d_node.errors import quote

ODD_OBJECTS = """
SELECT name FROM sqlite_master WHERE NOT (
  type IN ('table', 'index') AND rootpage > 0
  AND (sql IS NULL OR sql LIKE 'CREATE TABLE %' OR sql LIKE 'CREATE % INDEX %'
       OR sql LIKE 'CREATE INDEX %'))
"""
"""Views, triggers and virtual tables: they compute rows, or run statements of their own."""

COMPUTED_COLUMNS = """
SELECT part.name FROM sqlite_master AS part, pragma_table_xinfo(part.name) AS column
WHERE part.type = 'table' AND column.hidden
"""


def check_rows_are_stored(database: sqlite3.Connection) -> None:
    """Check that a database has only tables that hold their rows, and indices.

    Raises:
        ValueError: It has a view, a trigger, a virtual table or a computed column.
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
