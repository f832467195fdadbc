"""Measured tables in documents: written from their JSON, or compared with it.

A table stands between `<!-- table: benchmarks/results/NAME.json -->` and `<!-- end of table -->`.
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


def write_tables(document: str, table_of: Callable[[dict[str, Any]], str]) -> int:
    """Write the tables of a document, or with `--check` only compare them; returns the exit code.

    Args:
        document: Its name in docs/.
        table_of: Makes a report's Markdown table.
    """
    path = ROOT / 'docs' / document
    text = path.read_text()
    fresh = TABLE.sub(
        lambda match: match[1] + table_of(json.loads((ROOT / match[2]).read_text())) + match[3],
        text,
    )
    if '--check' in sys.argv[1:]:
        return int(fresh != text)
    path.write_text(fresh)
    return 0
