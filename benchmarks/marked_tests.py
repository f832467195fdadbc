"""Tables of documents that are made of the marks of tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from measured_tables import markdown_table, ROOT


def table_of_tests(mark: str, header: list[str], folder: Path) -> str:
    """Return a Markdown table with a row per marked test.

    Args:
        mark: Name of the pytest mark, whose two arguments are the first cells of the row.
        header: Names of the three columns.
        folder: Where the tests are, at any depth.
    """
    rows = [row for path in sorted(folder.rglob('test_*.py')) for row in _rows(path, mark)]
    return markdown_table(header, 'lll', rows)


def _rows(path: Path, mark: str) -> Iterator[list[str]]:
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(
                f'.{mark}'
            ):
                cells = [ast.literal_eval(argument) for argument in decorator.args]
                link = f'[{_words(node.name)}](../{path.relative_to(ROOT).as_posix()})'
                yield [*cells, link]


def _words(name: str) -> str:
    return name.removeprefix('test_').replace('_', ' ')
