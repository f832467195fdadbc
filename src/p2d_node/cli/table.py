"""The live table of answers and times; without a terminal, a line per answer."""

from __future__ import annotations

from collections.abc import Sequence
import json
from typing import Any, TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from p2d_node.ros.answer_watcher import AnswerWatcher

STAGES = (
    ('sync', 'sync_wait_ms'),
    ('decode', 'decode_ms'),
    ('prep', 'preprocess_ms'),
    ('encode', 'encode_ms'),
    ('select', 'select_ms'),
    ('prefill', 'prefill_ms'),
    ('generate', 'generate_ms'),
    ('total', 'total_ms'),
)
"""Column title and field of `p2d_msgs/StageTiming`."""

ROWS_SHOWN = 8

REFRESH_S = 0.25
"""Time between two updates of the table."""


class LiveTable:
    """Shows a watcher: a table on a terminal, else a line per answer (text or JSON)."""

    def __init__(self, watcher: AnswerWatcher, *, json_lines: bool = False) -> None:
        """Show what `watcher` has received."""
        self._watcher = watcher
        self._json_lines = json_lines
        console = Console()
        self._live = Live(console=console) if console.is_terminal and not json_lines else None
        self._num_printed = 0

    def __enter__(self) -> LiveTable:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        if self._live is not None:
            self._live.stop()

    def update(self) -> None:
        """Show what is new."""
        answers = self._watcher.answers
        if self._live is not None:
            self._live.update(render(answers, self._watcher.timings, self._watcher.problems))
            return
        for message in answers[self._num_printed :]:
            text = json.dumps(to_dict(message)) if self._json_lines else answer_line(message)
            print(text, flush=True)
        self._num_printed = len(answers)


def to_dict(message: Any) -> Any:
    """Return a ROS message as plain Python values."""
    if hasattr(message, 'get_fields_and_field_types'):
        return {
            name: to_dict(getattr(message, name)) for name in message.get_fields_and_field_types()
        }
    if isinstance(message, (str, int, float, bool)):
        return message
    return [to_dict(item) for item in message]


def render(
    answers: Sequence[Any], timings: Sequence[Any], problems: Sequence[str]
) -> RenderableType:
    """Return a table of the last answers and times, and the warnings of diagnostics."""
    return Group(_answers(answers), _times(timings), *(Text(line, 'yellow') for line in problems))


def answer_line(message: Any) -> str:
    """Return one answer as a line of text."""
    kept, total = sum(message.tokens_kept), sum(message.tokens_total)
    return (
        f'{stamp_text(message.header.stamp)}  {kept}/{total} tokens  '
        f'{message.timing.total_ms:6.0f} ms  {message.question}  ->  {message.answer}'
    )


def stamp_text(stamp: Any) -> str:
    """Return a stamp as seconds with milliseconds."""
    return f'{stamp.sec}.{stamp.nanosec // 1_000_000:03d}'


def _answers(answers: Sequence[Any]) -> Table:
    model = answers[-1].model if answers else 'waiting for answers'
    table = Table(title=f'answers of {model}', expand=True)
    for title in ('stamp', 'question', 'answer', 'kept'):
        table.add_column(title, no_wrap=title in ('stamp', 'kept'))
    for message in answers[-ROWS_SHOWN:]:
        kept = f'{sum(message.tokens_kept)}/{sum(message.tokens_total)}'
        table.add_row(stamp_text(message.header.stamp), message.question, message.answer, kept)
    return table


def _times(timings: Sequence[Any]) -> Table:
    table = Table(title='milliseconds per sweep', expand=True)
    table.add_column('stamp', no_wrap=True)
    for title, _ in STAGES:
        table.add_column(title, justify='right')
    for message in timings[-ROWS_SHOWN:]:
        values = (f'{getattr(message, field):.1f}' for _, field in STAGES)
        table.add_row(stamp_text(message.header.stamp), *values)
    return table
