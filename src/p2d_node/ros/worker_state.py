"""What the worker counts and measures."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from p2d_node.records import PassCounts

LATENCY_WINDOW = 120
"""Sweeps over which latency is summarised: ten seconds at 12 Hz."""


@dataclass(slots=True)
class WorkerState:
    """Counters and times of the worker. Readers get whole values, but not all of one instant.

    Attributes:
        answered: Sweeps that were answered.
        superseded: Sweeps that a newer one replaced while they waited.
        not_newer_in_a_row: Sweeps that were not newer than the one before, and were dropped.
        failed: Sweeps that were dropped because a frame or a stage failed.
        failed_in_a_row: Failed sweeps since the last answered one.
        too_old: Sweeps that were dropped before work on them began, because of their age.
        late: Sweeps whose answers were published late.
        late_in_a_row: Sweeps that were too old or late since the last one in time.
        short_clips: Sweeps with fewer earlier frames than a clip has.
        short_in_a_row: The same, since the last sweep with a full clip.
        outdated: Sweeps that were dropped in work because a parameter changed.
        unanswered: Questions of ~/ask and ~/question that got a reason instead of an answer.
        broken_frames: Camera to number of its frames that could not be decoded.
        broken_reasons: Camera to what was wrong with the last such frame.
        last_error: Message of the last failure; empty after a success.
        last_answer_ns: Time of the last answer, steady clock; None before the first.
        begun_ns: Time at which work on the current sweep began, steady clock; None between
            sweeps.
        totals_ms: Time from first frame to last answer, of recent sweeps.
        decoding: Generated tokens, and what they cost, of recent sweeps.
    """

    answered: int = 0
    superseded: int = 0
    not_newer_in_a_row: int = 0
    failed: int = 0
    failed_in_a_row: int = 0
    too_old: int = 0
    late: int = 0
    late_in_a_row: int = 0
    short_clips: int = 0
    short_in_a_row: int = 0
    outdated: int = 0
    unanswered: int = 0
    broken_frames: Counter[str] = field(default_factory=Counter)
    broken_reasons: dict[str, str] = field(default_factory=dict)
    last_error: str = ''
    last_answer_ns: int | None = None
    begun_ns: int | None = None
    totals_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCY_WINDOW))
    decoding: deque[tuple[int, PassCounts]] = field(
        default_factory=lambda: deque(maxlen=LATENCY_WINDOW)
    )
