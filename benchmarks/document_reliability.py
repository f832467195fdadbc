"""Writes the table of docs/reliability.md from the tests: fault, reaction, test.

`--check` only compares.
"""

from __future__ import annotations

import sys
from typing import Any

from marked_tests import table_of_tests
from measured_tables import markdown_table, read_report, ROOT, write_tables

DOCUMENT = 'docs/reliability.md'


def make_table(name: str) -> str:
    """Return the table `name` as Markdown: `faults`, or the criteria in the report of a soak."""
    if name != 'faults':
        report = read_report(name)
        criteria = [[c['what'], c['value'], c['limit']] for c in report['criteria']]
        return markdown_table(['', 'value', 'allowed'], 'lrr', [*_totals(report), *criteria])
    return table_of_tests(
        'faults', ['fault', 'what the node does', 'test'], ROOT / 'tests' / 'ros'
    )


def _totals(report: dict[str, Any]) -> list[list[str]]:
    counts = {
        'minutes': f'{report["seconds"] / 60:.1f}',
        'faults': str(len(report['faults'])),
        'callers of ~/ask': str(report['callers']['asked']),
    }
    return [[name, value, ''] for name, value in counts.items()]


if __name__ == '__main__':
    sys.exit(write_tables(DOCUMENT, make_table))
