"""Tables of figures that are never cut, in narrow terminals and in files too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from p2d_node.cli.screen import InertConsole
from rich.measure import Measurement
from rich.table import Table

ANY_WIDTH = 10_000


def print_figures(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str, caption: str = ''
) -> None:
    """Print a table whose cells are never cut, even if its lines are longer than the terminal.

    Args:
        headings: One per column; a heading may have several lines.
        rows: Cells of each row, one per column.
        title: Text above the table.
        caption: Text below the table.
    """
    console = InertConsole()
    table = Table(title=title, caption=caption)
    for heading in headings:
        table.add_column(heading, justify='right', no_wrap=True)
    for row in rows:
        table.add_row(*row)
    options = console.options.update_width(ANY_WIDTH)
    console.width = max(console.width, Measurement.get(console, options, table).maximum)
    console.print(table)
