"""The thread that answers: takes the latest sweep, runs the pipeline, hands the answers out.

A sweep that comes while another is worked on waits in a one-slot mailbox; a newer one replaces it,
so an answer is never about an old sweep because of a queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
import os
import threading
import time
import traceback

from p2d_node.errors import ImageDecodeError, InferenceError, P2dError
from p2d_node.language_model.conversation import OnPartial
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import DrivingAnswer, FrameSet

MAX_PENDING_QUESTIONS = 16
"""Questions that may wait for the next sweep; one more is refused."""

WORKER_NICENESS = 5
"""Frames are received first: where cores are few, a busy model must not make sweeps incomplete."""

LATENCY_WINDOW = 120
"""Sweeps over which latency is summarised: ten seconds at 12 Hz."""

Deliver = Callable[[FrameSet, Sequence[DrivingAnswer]], None]
Outcome = tuple[FrameSet, DrivingAnswer] | P2dError | None
"""Of a question that was asked: the sweep and the answer, what went wrong, or None where the time
ran out or the worker was stopped."""

Settle = Callable[[Outcome], None]


@dataclass(slots=True)
class WorkerState:
    """What the worker did so far; a reader gets whole values, though not all of one instant.

    Attributes:
        answered: Sweeps that were answered.
        superseded: Sweeps that a newer one replaced before their turn.
        failed: Sweeps that were dropped because a frame or a stage failed.
        failed_in_a_row: The last of these without an answer between them.
        last_error: What the last failure said; empty after a success.
        last_answer_ns: Steady clock at the last answer; None before the first.
        begun_ns: Steady clock when work on the present sweep began; None between sweeps.
        totals_ms: First frame to last answer of recent sweeps.
    """

    answered: int = 0
    superseded: int = 0
    failed: int = 0
    failed_in_a_row: int = 0
    last_error: str = ''
    last_answer_ns: int | None = None
    begun_ns: int | None = None
    totals_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCY_WINDOW))


@dataclass(frozen=True, slots=True)
class _PendingQuestion:
    text: str
    expires_ns: int
    settle: Settle


class SweepWorker:
    """Owns the mailbox, the questions that wait, and the thread.

    `submit`, `ask` and `stop` may be called from any thread; `deliver` runs on the worker's.
    """

    def __init__(
        self,
        pipeline: DrivingPipeline,
        deliver: Deliver,
        report_failure: Callable[[P2dError], None],
        report_partial: OnPartial,
    ) -> None:
        """Set up; `start` begins the work.

        Args:
            pipeline: Answers questions about a sweep.
            deliver: Gets a sweep and its answers; standing questions first, then asked ones.
            report_failure: Gets what went wrong with a sweep.
            report_partial: Gets answers while they grow, where the configuration asks for that.
        """
        self.state = WorkerState()
        self._pipeline = pipeline
        self._deliver = deliver
        self._report_failure = report_failure
        self._report_partial = report_partial
        self._condition = threading.Condition()
        self._slot: FrameSet | None = None
        self._newest: tuple[int, int] | None = None
        self._pending: deque[_PendingQuestion] = deque()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name='sweep-worker', daemon=True)

    def start(self) -> None:
        """Begin to take sweeps."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Cut the answer in work, refuse waiting questions, end the thread.

        Returns:
            True if the thread ended within `timeout_s`.
        """
        with self._condition:
            self._stopping.set()
            pending = list(self._pending)
            self._pending.clear()
            self._condition.notify_all()
        for question in pending:
            question.settle(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def submit(self, frame_set: FrameSet) -> None:
        """Put a sweep into the mailbox unless a newer one was there before."""
        with self._condition:
            if self._newest is not None and frame_set.order <= self._newest:
                self.state.superseded += 1
                return
            self._newest = frame_set.order
            if self._slot is not None:
                self.state.superseded += 1
            self._slot = frame_set
            self._condition.notify_all()

    def ask(self, question: str, timeout_s: float, settle: Settle) -> bool:
        """Have `question` answered on the next sweep.

        Args:
            question: Non-empty text.
            timeout_s: Longest wait, on the steady clock.
            settle: Called once, from any thread, with the outcome; see `expire_questions` for when
                the time runs out. A frame that cannot be used is no outcome: the next sweep may
                be better.

        Returns:
            False if too many questions wait; then `settle` is not called.
        """
        expires_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        with self._condition:
            if len(self._pending) >= MAX_PENDING_QUESTIONS or self._stopping.is_set():
                return False
            self._pending.append(_PendingQuestion(question, expires_ns, settle))
        return True

    def expire_questions(self) -> None:
        """Settle the questions whose time has run out; call it once in a while."""
        if not self._pending:
            return
        now_ns = time.monotonic_ns()
        with self._condition:
            expired = [question for question in self._pending if question.expires_ns <= now_ns]
        for question in self._take(expired):
            question.settle(None)

    def _take(self, questions: Sequence[_PendingQuestion]) -> list[_PendingQuestion]:
        """Remove `questions` from the waiting ones; returns those that still waited."""
        wanted = {id(question) for question in questions}
        with self._condition:
            taken = [question for question in self._pending if id(question) in wanted]
            self._pending = deque(q for q in self._pending if id(q) not in wanted)
        return taken

    def _run(self) -> None:
        # On Linux niceness belongs to the thread; the threads it starts inherit it.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WORKER_NICENESS)
        while not self._stopping.is_set():
            with self._condition:
                self._condition.wait_for(lambda: self._slot is not None or self._stopping.is_set())
                frame_set, self._slot = self._slot, None
                asked = list(self._pending)
            if frame_set is not None:
                self.state.begun_ns = time.monotonic_ns()
                self._work(frame_set, asked)
                self.state.begun_ns = None

    def _work(self, frame_set: FrameSet, asked: list[_PendingQuestion]) -> None:
        try:
            self._answer(frame_set, asked)
        except ImageDecodeError as err:
            self._fail(err)
        except P2dError as err:
            self._fail(err)
            self._settle_all(asked, err)
        except Exception as err:  # whatever it is, the next sweep deserves its turn
            trace = traceback.format_exc()
            self._fail(InferenceError(f'a fault nobody thought of, please report it: {trace}'))
            self.state.last_error = f'{type(err).__name__}: {err}'
            self._settle_all(asked, InferenceError(self.state.last_error))

    def _settle_all(self, asked: list[_PendingQuestion], err: P2dError) -> None:
        """Give up on questions that a sweep failed with: they may be why, and fail others too."""
        for question in self._take(asked):
            question.settle(err)

    def _fail(self, err: P2dError) -> None:
        self.state.failed += 1
        self.state.failed_in_a_row += 1
        self.state.last_error = str(err)
        self._report_failure(err)

    def _answer(self, frame_set: FrameSet, asked: list[_PendingQuestion]) -> None:
        questions = [*self._pipeline.config.questions, *(question.text for question in asked)]
        streams = self._pipeline.config.stream_partial_answers
        answers = self._pipeline.answer(
            frame_set,
            questions,
            must_stop=self._stopping.is_set,
            on_partial=self._report_partial if streams else None,
        )
        if self._stopping.is_set() or not answers:
            return
        self._deliver(frame_set, answers)
        self._settle(asked, frame_set, answers[len(questions) - len(asked) :])
        self.state.answered += 1
        self.state.failed_in_a_row = 0
        self.state.last_error = ''
        self.state.last_answer_ns = time.monotonic_ns()
        self.state.totals_ms.append(answers[0].times.total_ms)

    def _settle(
        self,
        asked: list[_PendingQuestion],
        frame_set: FrameSet,
        answers: Sequence[DrivingAnswer],
    ) -> None:
        answer_of = {id(q): answer for q, answer in zip(asked, answers, strict=True)}
        for question in self._take(asked):
            question.settle((frame_set, answer_of[id(question)]))
