"""The live table of answers and times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

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


def render(
    answers: Sequence[Any], timings: Sequence[Any], problems: Sequence[str]
) -> RenderableType:
    """Draw the last answers, the last times and what diagnostics complain about."""
    return Group(_answers(answers), _times(timings), *(Text(line, 'yellow') for line in problems))


def answer_line(message: Any) -> str:
    """Return one answer as a line for logs and pipes."""
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
