"""The live table of answers and times; without a terminal, a line per answer."""

from __future__ import annotations

from collections.abc import Sequence
import json
import math
from typing import Any, TYPE_CHECKING

from p2d_node.cli.screen import InertConsole, say
from p2d_node.errors import one_line
from p2d_node.latency import percentile_field, PERCENTILES
from p2d_node.units import NS_PER_S
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
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
    ('age', 'end_to_end_ms'),
)
"""Column title and field of `p2d_msgs/StageTiming`."""

TIMES_SHOWN = 4
PROBLEMS_SHOWN = 4
HEAD_LINES = 3
"""Title, column titles and rule of a table."""

MAX_CELL_CHARACTERS = 1000
"""More than a terminal has columns: a longer text would only cost time."""

DECIMAL_BELOW_MS, DIGITS_BELOW_MS = 1000.0, 1e9
"""A terminal of 80 columns has no room for the decimals of larger times."""

REFRESH_S = 0.25
"""Time between two updates of the table."""


class LiveTable:
    """Shows a watcher: a table on a terminal, else a line per answer (text or JSON)."""

    def __init__(self, watcher: AnswerWatcher, *, json_lines: bool = False) -> None:
        """Show what `watcher` has received."""
        self._watcher = watcher
        self._json_lines = json_lines
        console = InertConsole()
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
        if self._live is not None:
            watcher, height = self._watcher, self._live.console.height
            shown = render(watcher.answers, watcher.timings, watcher.problems, height)
            self._live.update(shown)
            return
        answers, self._num_printed = self._watcher.answers_after(self._num_printed)
        for message in answers:
            say(json.dumps(to_dict(message)) if self._json_lines else answer_line(message))


def to_dict(message: Any) -> Any:
    """Return a ROS message as values that JSON has: NaN and infinity are None."""
    if hasattr(message, 'get_fields_and_field_types'):
        names = [*message.get_fields_and_field_types()]
        if getattr(message, 'window_sweeps', 1) == 0:
            # The times of an answer: what follows is of the whole sweep.
            names = names[: names.index('num_generated_tokens')]
        return {name: to_dict(getattr(message, name)) for name in names}
    if isinstance(message, float):
        return message if math.isfinite(message) else None
    if isinstance(message, (str, int)):
        return message
    return [to_dict(item) for item in message]


def render(
    answers: Sequence[Any], timings: Sequence[Any], problems: Sequence[str], height: int
) -> RenderableType:
    """Return what fits into `height` lines: warnings, and the newest times and answers."""
    shown = list(problems[:PROBLEMS_SHOWN])
    if len(problems) > len(shown):
        shown[-1] = f'and {len(problems) - len(shown) + 1} more warnings: see /diagnostics'
    num_times = min(TIMES_SHOWN, len(timings))
    num_percentiles = len(PERCENTILES) if timings else 0
    num_answers = height - 1 - len(shown) - num_times - num_percentiles - 2 * HEAD_LINES
    first_ns = stamp_ns(timings[0]) if timings else 0
    return Group(
        *(Text(_cell(line), 'yellow', no_wrap=True, overflow='ellipsis') for line in shown),
        _times(timings[: -num_times - 1 : -1], first_ns),
        _answers(answers[: -max(1, num_answers) - 1 : -1], first_ns),
    )


def answer_line(message: Any) -> str:
    """Return one answer as a line of text."""
    kept, total = sum(message.tokens_kept), sum(message.tokens_total)
    return (
        f'{stamp_text(message.header.stamp)}  {kept}/{total} tokens  '
        f'{message.timing.total_ms:6.0f} ms  {_cell(message.question)}  ->  '
        f'{_cell(_marked(message))}'
    )


def _marked(message: Any) -> str:
    return f'[late] {message.answer}' if message.late else str(message.answer)


def stamp_text(stamp: Any) -> str:
    """Return a stamp as seconds with milliseconds."""
    return f'{stamp.sec}.{stamp.nanosec // 1_000_000:03d}'


def stamp_ns(message: Any) -> int:
    """Return the capture stamp of a message, nanoseconds."""
    stamp = message.header.stamp
    return int(stamp.sec * NS_PER_S + stamp.nanosec)


def _seconds(message: Any, first_ns: int) -> str:
    return f'{(stamp_ns(message) - first_ns) / NS_PER_S:.1f}'


def _table(title: str) -> Table:
    shown = Text(_cell(title), 'table.title', justify='center', no_wrap=True, overflow='ellipsis')
    table = Table(title=shown, expand=True, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column('s', justify='right', no_wrap=True)
    return table


def _answers(answers: Sequence[Any], first_ns: int) -> Table:
    """Return a table of answers, one line each; texts are cut, numbers are not."""
    table = _table(f'answers of {answers[0].model}' if answers else 'waiting for answers')
    table.add_column('question', no_wrap=True, overflow='ellipsis', ratio=1)
    table.add_column('answer', no_wrap=True, overflow='ellipsis', ratio=1)
    table.add_column('kept', justify='right', no_wrap=True)
    table.add_column('tok/pass', justify='right', no_wrap=True)
    for message in answers:
        kept = f'{sum(message.tokens_kept)}/{sum(message.tokens_total)}'
        texts = (_cell(message.question), _cell(_marked(message)))
        cost = f'{message.num_generated_tokens}/{message.num_decoder_passes}'
        table.add_row(_seconds(message, first_ns), *texts, kept, cost)
    return table


def _cell(text: str) -> str:
    return one_line(text[:MAX_CELL_CHARACTERS])


def _times(timings: Sequence[Any], first_ns: int) -> Table:
    table = _table('milliseconds per sweep; s: seconds from the first sweep')
    for title, _ in STAGES:
        table.add_column(title, justify='right', no_wrap=True)
    for message in timings:
        values = (_milliseconds(message, field) for _, field in STAGES)
        table.add_row(_seconds(message, first_ns), *values)
    for suffix in PERCENTILES if timings else ():
        # Percentiles of the newest message: over the latest sweeps.
        values = (_milliseconds(timings[0], percentile_field(f, suffix)) for _, f in STAGES)
        table.add_row(suffix, *values, style='dim')
    return table


def _milliseconds(message: Any, field: str) -> str:
    value = getattr(message, field)
    if abs(value) >= DIGITS_BELOW_MS:
        return f'{value:.0e}'
    return f'{value:.1f}' if abs(value) < DECIMAL_BELOW_MS else f'{value:.0f}'
