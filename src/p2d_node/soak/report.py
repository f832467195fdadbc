"""What a soak found: the figures, whether they hold, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
import statistics
from typing import Any

from p2d_node.benchmarks.measuring import percentile
from p2d_node.figures import new_figure, write_figure
from p2d_node.soak.observer import SeenAnswer
from p2d_node.soak.schedule import FaultResult, Sample

MAX_RECOVERY_S = 3.0
MAX_GONE_S = 10.0
"""Rates are measured over 5 s, so a camera that is back looks slow for that long."""

MAX_GROWTH_MIB = 20.0
MAX_MORE_THREADS = 4
MAX_MORE_FILES = 8
AGE_MARGIN_MS = 250.0
"""Time for an answer to reach the observer, on a busy machine."""

WARM_UP_SHARE = 0.25
"""Of the run; memory is compared from then on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One thing that must hold: what, the value, the limit, and whether it holds."""

    what: str
    value: str
    limit: str
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakResult:
    """What was seen during a soak.

    Attributes:
        seconds: How long it ran.
        seed: Of its chance.
        exit_code: Of the node, if it ended by itself; otherwise None.
        num_sweeps: Sweeps that were sent.
        answers: All answers.
        faults: All faults.
        samples: Figures of the process.
        callers: Counts of the callers of ~/ask: asked, answered, told, lost.
        max_answer_age_ms: Of the node.
    """

    seconds: float
    seed: int
    exit_code: int | None
    num_sweeps: int
    answers: Sequence[SeenAnswer]
    faults: Sequence[FaultResult]
    samples: Sequence[Sample]
    callers: dict[str, int]
    max_answer_age_ms: float

    @property
    def criteria(self) -> list[Criterion]:
        """What must hold."""
        mixed = sum(answer.mixed for answer in self.answers)
        limit_ms = self.max_answer_age_ms + AGE_MARGIN_MS
        unmarked = sum(answer.age_ms > limit_ms and not answer.late for answer in self.answers)
        ended = 'no' if self.exit_code is None else f'code {self.exit_code}'
        hidden = [f for f in self.faults if f.expected and f.shown_after_s is None]
        staying = [f for f in self.faults if (f.gone_after_s or MAX_GONE_S + 1) > MAX_GONE_S]
        recovery_s = percentile([f.recovered_after_s or 99.0 for f in self.faults] or [0.0], 0.95)
        growth = self.growth()
        return [
            Criterion(what='node ended', value=ended, limit='no', holds=self.exit_code is None),
            _count('answers', len(self.answers), at_least=1),
            _count('answers that mix sweeps', mixed),
            _count(f'answers older than {limit_ms:g} ms and not marked', unmarked),
            _count('callers of ~/ask without a reply', self.callers['lost']),
            _count('faults that diagnostics did not show', len(hidden)),
            _count(f'faults still shown {MAX_GONE_S:g} s after their end', len(staying)),
            Criterion(
                what='recovery, 95th percentile',
                value=f'{recovery_s:.1f} s',
                limit=f'below {MAX_RECOVERY_S:g} s',
                holds=recovery_s < MAX_RECOVERY_S,
            ),
            Criterion(
                what='memory growth after warm-up',
                value=f'{growth["memory_mib"]:+.1f} MiB',
                limit=f'below {MAX_GROWTH_MIB:g} MiB',
                holds=growth['memory_mib'] < MAX_GROWTH_MIB,
            ),
            _growth('threads', growth['threads'], MAX_MORE_THREADS),
            _growth('open files', growth['files'], MAX_MORE_FILES),
        ]

    def growth(self) -> dict[str, float]:
        """Return the growth of each figure from the end of the warm-up to the end of the run."""
        warm = self.samples[int(WARM_UP_SHARE * len(self.samples)) :]
        part = max(1, len(warm) // 5)
        names = ('memory_mib', 'threads', 'files')
        if not warm:
            return dict.fromkeys(names, 0.0)
        return {name: _median(warm[-part:], name) - _median(warm[:part], name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON data, without the single answers."""
        recoveries = [f.recovered_after_s for f in self.faults if f.recovered_after_s is not None]
        recoveries = recoveries or [0.0]
        return {
            'seconds': round(self.seconds, 1),
            'seed': self.seed,
            'sweeps': self.num_sweeps,
            'answers': len(self.answers),
            'late answers': sum(answer.late for answer in self.answers),
            'callers': self.callers,
            'recovery (s)': {
                'median': round(percentile(recoveries, 0.5), 2),
                'p95': round(percentile(recoveries, 0.95), 2),
            },
            'growth': {name: round(value, 1) for name, value in self.growth().items()},
            'criteria': [asdict(criterion) for criterion in self.criteria],
            'faults': [asdict(fault) for fault in self.faults],
        }


def _median(samples: Sequence[Sample], name: str) -> float:
    values: list[float] = [getattr(sample.figures, name) for sample in samples]
    return statistics.median(values)


def _count(what: str, value: int, *, at_least: int | None = None) -> Criterion:
    if at_least is not None:
        limit, holds = f'{at_least} or more', value >= at_least
    else:
        limit, holds = '0', value == 0
    return Criterion(what=what, value=str(value), limit=limit, holds=holds)


def _growth(what: str, value: float, limit: int) -> Criterion:
    return Criterion(
        what=f'more {what} after warm-up',
        value=f'{value:+.0f}',
        limit=f'up to {limit}',
        holds=value <= limit,
    )


def write_timeline(result: SoakResult, start_s: float, path: Path) -> None:
    """Draw the ages of answers, the faults and the memory over time.

    Args:
        result: The soak.
        start_s: Its start, steady clock.
        path: PNG file.
    """
    kinds = sorted({fault.kind for fault in result.faults})
    figure = new_figure(12, 9)
    heights = (2, max(2.0, 0.25 * len(kinds)), 1)
    ages, faults, memory = figure.subplots(3, sharex=True, height_ratios=heights)
    on_time = [answer for answer in result.answers if not answer.late]
    late = [answer for answer in result.answers if answer.late]
    for answers, label, colour in ((on_time, 'answers', 'C0'), (late, 'marked late', 'C1')):
        times = [answer.time_s - start_s for answer in answers]
        ages.plot(times, [a.age_ms for a in answers], '.', ms=2, color=colour, label=label)
    ages.axhline(result.max_answer_age_ms, color='C3', lw=1, label='max_answer_age_ms')
    ages.set(ylabel='age of answers, ms', title=f'soak of {result.seconds / 60:.1f} minutes')
    ages.legend(loc='upper right')
    for fault in result.faults:
        seen = fault.shown_after_s is not None or not fault.expected
        faults.barh(
            kinds.index(fault.kind),
            fault.ended_s - fault.begun_s,
            left=fault.begun_s - start_s,
            color='C2' if seen else 'C3',
        )
    faults.set_yticks(range(len(kinds)), kinds, fontsize=8)
    faults.set(ylabel='faults (red: not in diagnostics)')
    times = [sample.time_s - start_s for sample in result.samples]
    memory.plot(times, [sample.figures.memory_mib for sample in result.samples], color='C4')
    memory.set(ylabel='memory, MiB', xlabel='seconds from the start', xlim=(0.0, result.seconds))
    used = [sample.figures.memory_mib for sample in result.samples if sample.time_s > start_s]
    memory.set_ylim(0.95 * min(used, default=0.0), 1.02 * max(used, default=1.0))
    write_figure(path, figure, 100)
