"""Runs one fault after the other, and measures how the node reacts to each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import itertools
import time

from p2d_node.soak.faults import fault, FaultKind, KINDS, LONGEST_S, SHORTEST_S, Stage
from p2d_node.soak.observer import Observer
from p2d_node.soak.process_figures import ProcessFigures, read_figures

ASK_EVERY_S = 1.0
SAMPLE_S = 0.1
LONGEST_RECOVERY_S = 12.0
QUIET_S = 1.5
"""Time without faults between two: at least one report of diagnostics says that all is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultResult:
    """What happened during and after one fault.

    Attributes:
        kind: Name of the fault.
        camera: The camera that had it.
        begun_s: When it began, steady clock.
        ended_s: When it ended.
        shown_after_s: Time until diagnostics said so; None without a message.
        expected: Whether diagnostics must say so.
        recovered_after_s: Time from its end to the first answer about six cameras of a later
            sweep; None if there was none.
        gone_after_s: Time from its end until all of diagnostics was OK; None if it never was.
    """

    kind: str
    camera: str
    begun_s: float
    ended_s: float
    shown_after_s: float | None
    expected: bool
    recovered_after_s: float | None
    gone_after_s: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process used at `time_s`, steady clock."""

    time_s: float
    figures: ProcessFigures


class Schedule:
    """Faults in a random order, each kind once before one comes again."""

    def __init__(self, stage: Stage, observer: Observer) -> None:
        """Use the cameras, callers and process of `stage`."""
        self.samples: list[Sample] = []
        self._stage = stage
        self._observer = observer
        self._asked_s = 0.0
        self._sampled_s = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether the process of the node runs."""
        return self._stage.process.poll() is None

    def run(self, end_s: float, must_stop: Callable[[], bool]) -> Iterator[FaultResult]:
        """Yield the result of each fault until `end_s`, steady clock, or until `must_stop`."""
        for kind in self._kinds():
            if time.monotonic() >= end_s or must_stop() or not self.is_alive:
                return
            yield self._run_fault(kind)

    def _kinds(self) -> Iterator[FaultKind]:
        for _ in itertools.count():
            yield from self._stage.random.sample(KINDS, len(KINDS))

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for a condition while callers ask and figures are read."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s and self.is_alive:
            now_s = time.monotonic()
            if now_s - self._asked_s > ASK_EVERY_S:
                self._asked_s = now_s
                self._stage.callers.ask('What is ahead?')
            if now_s - self._sampled_s > 1.0:
                self._sampled_s = now_s
                if (figures := read_figures(self._stage.process.pid)) is not None:
                    self.samples.append(Sample(now_s, figures))
            if condition():
                return True
            time.sleep(SAMPLE_S)
        return False

    def _run_fault(self, kind: FaultKind) -> FaultResult:
        camera = self._stage.random.choice(self._stage.cameras.cameras)
        begun_s = time.monotonic()
        with fault(kind, self._stage, camera):
            self.wait_until(lambda: False, self._stage.random.uniform(SHORTEST_S, LONGEST_S))
        ended_s, ended_ns = time.monotonic(), time.time_ns()

        def recovered_s() -> float | None:
            return next(
                (
                    answer.time_s - ended_s
                    for answer in self._observer.answers_since(ended_s)
                    if answer.num_cameras == len(self._stage.cameras.cameras)
                    and not answer.late
                    and answer.captured_ns is not None
                    and answer.captured_ns >= ended_ns
                ),
                None,
            )

        def gone_s() -> float | None:
            reports = self._observer.reports_since(ended_s)
            return next((r.time_s - ended_s for r in reports if r.all_ok), None)

        self.wait_until(
            lambda: recovered_s() is not None and gone_s() is not None, LONGEST_RECOVERY_S
        )
        recovered_after_s, gone_after_s = recovered_s(), gone_s()
        self.wait_until(lambda: False, QUIET_S)
        return FaultResult(
            kind=kind.name,
            camera=camera,
            begun_s=begun_s,
            ended_s=ended_s,
            shown_after_s=self._shown_s(kind, camera, begun_s),
            expected=bool(kind.component),
            recovered_after_s=recovered_after_s,
            gone_after_s=gone_after_s,
        )

    def _shown_s(self, kind: FaultKind, camera: str, begun_s: float) -> float | None:
        if not kind.component:
            return None
        component = kind.component.replace('{camera}', camera)
        text = kind.text.replace('{camera}', camera)
        reports = self._observer.reports_since(begun_s)
        return next((r.time_s - begun_s for r in reports if r.problem(component, text)), None)
