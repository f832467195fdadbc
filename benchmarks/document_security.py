"""Writes the table of docs/security.md from the tests: attack, what happens, test.

`--check` only compares.
"""

from __future__ import annotations

import sys

from marked_tests import table_of_tests
from measured_tables import ROOT, write_tables

DOCUMENT = 'docs/security.md'


def make_table(_name: str) -> str:
    """Return the table of attacks as Markdown."""
    return table_of_tests('attack', ['attack', 'what happens', 'test'], ROOT / 'tests')


if __name__ == '__main__':
    sys.exit(write_tables(DOCUMENT, make_table))
