"""Generated tables in documents: written from their source, or compared with it.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. NAME is the path of a
JSON file of measured figures, or the name of a table that comes from the code.
"""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path
import re
import sys
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = re.compile(r'(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)', re.DOTALL)
MACHINE = '2-core x86-64 CPU (cloud VM)'

MakeTable = Callable[[str], str]
"""Returns the Markdown of the table with a name."""


def read_report(name: str) -> dict[str, Any]:
    """Return the measured figures of a JSON file; `name` is its path from the root."""
    report: dict[str, Any] = json.loads((ROOT / name).read_text(encoding='utf-8'))
    return report


def fill_tables(text: str, make_table: MakeTable) -> str:
    """Return the text of a document with new tables."""
    return TABLE.sub(lambda match: f'{match[1]}{make_table(match[2])}{match[3]}', text)


def write_tables(document: str, make_table: MakeTable) -> int:
    """Write the tables of a document, or with `--check` only compare them.

    Args:
        document: Its path from the root.
        make_table: Makes each of its tables.

    Returns:
        The exit code: 1 if a comparison finds a difference.
    """
    path = ROOT / document
    text = path.read_text(encoding='utf-8')
    filled = fill_tables(text, make_table)
    if '--check' in sys.argv[1:]:
        if filled != text:
            print(f'{document}: tables differ from their source; run make documents')
        return int(filled != text)
    path.write_text(filled, encoding='utf-8')
    return 0


def markdown_table(header: list[str], alignment: str, rows: list[list[str]]) -> str:
    """Return a Markdown table.

    Args:
        header: The names of the columns.
        alignment: A letter per column, `l` or `r`.
        rows: The cells; `|` is escaped.
    """
    rules = {'l': '---', 'r': '---:'}
    rule = f'|{"|".join(rules[letter] for letter in alignment)}|\n'
    first, *others = (
        f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in line)} |\n'
        for line in (header, *rows)
    )
    return first + rule + ''.join(others)


def percent(share: float) -> str:
    """Return a share in [0, 1] as percent with one digit."""
    return f'{100 * share:.1f} %'
