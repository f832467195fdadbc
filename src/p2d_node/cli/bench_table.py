"""Tables of figures, which stay whole in narrow terminals and in files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

ANY_WIDTH = 10_000


def print_figures(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str, caption: str = ''
) -> None:
    """Print a table whose cells are never cut, even where its lines are longer than the terminal.

    Args:
        headings: One per column; may have several lines.
        rows: Cells, one per column.
        title: Above the table.
        caption: Below the table.
    """
    console = Console()
    table = Table(title=title, caption=caption)
    for heading in headings:
        table.add_column(heading, justify='right', no_wrap=True)
    for row in rows:
        table.add_row(*row)
    options = console.options.update_width(ANY_WIDTH)
    console.width = max(console.width, Measurement.get(console, options, table).maximum)
    console.print(table)
