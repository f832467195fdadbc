"""What `p2d` shows: texts from models, peers and files come in; inert text goes to the terminal.

Everything that a verb shows to people goes through `say` or `InertConsole`. JSON does not need
them: it escapes such characters itself.
"""

from __future__ import annotations

import sys
from typing import Any

from p2d_node.errors import one_line
from rich.console import Console
from rich.text import Text


def say(text: str, *, error: bool = False) -> None:
    """Print one line, to standard error if it is about an error."""
    print(one_line(text), file=sys.stderr if error else sys.stdout, flush=True)


class InertConsole(Console):
    """A console that shows texts as they are: no markup, no links, no escape sequences."""

    def __init__(self, **options: Any) -> None:
        """Open the console; `options` are arguments of rich's `Console`."""
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return printed texts, cells and titles as rich's `Text`; line ends stay."""
        lines = (one_line(line) for line in text.split('\n'))
        return super().render_str('\n'.join(lines), **options)
