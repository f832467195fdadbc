"""Writes the table of docs/reliability.md from the tests: fault, reaction, test.

`--check` only compares.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
import sys
from typing import Any

from measured_tables import markdown_table, read_report, ROOT, write_tables

DOCUMENT = 'docs/reliability.md'
TESTS = ROOT / 'tests' / 'ros'


def make_table(name: str) -> str:
    """Return the table `name` as Markdown: `faults`, or the criteria in the report of a soak."""
    if name != 'faults':
        report = read_report(name)
        criteria = [[c['what'], c['value'], c['limit']] for c in report['criteria']]
        return markdown_table(['', 'value', 'allowed'], 'lrr', [*_totals(report), *criteria])
    rows = [row for path in sorted(TESTS.glob('test_*.py')) for row in _rows(path)]
    return markdown_table(['fault', 'what the node does', 'test'], 'lll', rows)


def _totals(report: dict[str, Any]) -> list[list[str]]:
    counts = {
        'minutes': f'{report["seconds"] / 60:.1f}',
        'faults': str(len(report['faults'])),
        'callers of ~/ask': str(report['callers']['asked']),
    }
    return [[name, value, ''] for name, value in counts.items()]


def _rows(path: Path) -> Iterator[list[str]]:
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith('.faults'):
                fault, reaction = (ast.literal_eval(argument) for argument in decorator.args)
                link = f'[{_words(node.name)}](../{path.relative_to(ROOT).as_posix()})'
                yield [fault, reaction, link]


def _words(name: str) -> str:
    return name.removeprefix('test_').replace('_', ' ')


if __name__ == '__main__':
    sys.exit(write_tables(DOCUMENT, make_table))
