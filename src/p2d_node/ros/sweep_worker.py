"""The thread that answers: it takes the latest sweep, runs the pipeline and hands out answers.

A sweep that arrives while another is in work waits in a mailbox with one slot. A newer sweep
replaces it, so answers never fall behind the cameras.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
import os
import threading
import time

from p2d_node.errors import ImageDecodeError, P2dError
from p2d_node.language_model.conversation import OnPartial
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import DrivingAnswer, FrameSet
from p2d_node.ros.unexpected_error import unexpected_error
from p2d_node.units import NS_PER_S

MAX_PENDING_QUESTIONS = 16
"""Questions that may wait for the next sweep; further ones are refused."""

WORKER_NICENESS = 5
"""Lower priority than the thread that receives frames: with few cores a busy model must not make
sweeps incomplete."""

LATENCY_WINDOW = 120
"""Sweeps over which latency is summarised: ten seconds at 12 Hz."""

OnAnswers = Callable[[FrameSet, Sequence[DrivingAnswer]], None]
AnsweredQuestion = tuple[FrameSet, DrivingAnswer]


class WorkerStoppedError(P2dError):
    """The worker was stopped before it could answer."""


@dataclass(slots=True)
class WorkerState:
    """Counters and times of the worker. Readers get whole values, but not all of one instant.

    Attributes:
        answered: Sweeps that were answered.
        superseded: Sweeps that a newer one replaced while they waited.
        not_newer_in_a_row: Sweeps that were not newer than the one before, and were dropped.
        failed: Sweeps that were dropped because a frame or a stage failed.
        failed_in_a_row: Failed sweeps since the last answered one.
        broken_frames: Camera to number of its frames that could not be decoded.
        last_error: Message of the last failure; empty after a success.
        last_answer_ns: Time of the last answer, steady clock; None before the first.
        begun_ns: Time at which work on the current sweep began, steady clock; None between
            sweeps.
        totals_ms: Time from first frame to last answer, of recent sweeps.
    """

    answered: int = 0
    superseded: int = 0
    not_newer_in_a_row: int = 0
    failed: int = 0
    failed_in_a_row: int = 0
    broken_frames: Counter[str] = field(default_factory=Counter)
    last_error: str = ''
    last_answer_ns: int | None = None
    begun_ns: int | None = None
    totals_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCY_WINDOW))


@dataclass(frozen=True, slots=True)
class _PendingQuestion:
    text: str
    expires_ns: int
    answer: Future[AnsweredQuestion] = field(default_factory=Future)


class SweepWorker:
    """Owns the mailbox, the pending questions and the thread.

    `submit`, `ask`, `expire_questions` and `stop` may be called from any thread. The callbacks
    run on the worker's thread.
    """

    def __init__(
        self,
        pipeline: DrivingPipeline,
        *,
        on_answers: OnAnswers,
        on_failure: Callable[[P2dError], None],
        on_partial: OnPartial,
    ) -> None:
        """Create the worker; `start` starts its thread.

        Args:
            pipeline: Answers questions about a sweep.
            on_answers: Called with a sweep and its answers: those to the configured questions
                first, then those to the questions that were asked.
            on_failure: Called with the error that made a sweep fail.
            on_partial: Called with question and answer while an answer grows, if
                `stream_partial_answers` is set.
        """
        self.state = WorkerState()
        self._pipeline = pipeline
        self._on_answers = on_answers
        self._on_failure = on_failure
        self._on_partial = on_partial
        self._condition = threading.Condition()
        self._slot: FrameSet | None = None
        self._newest: tuple[int, int] | None = None
        self._pending: deque[_PendingQuestion] = deque()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name='sweep-worker', daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Stop the answer in work, fail the pending questions and end the thread.

        Returns:
            True if the thread ended within `timeout_s`.
        """
        with self._condition:
            self._stopping.set()
            pending = list(self._pending)
            self._pending.clear()
            self._condition.notify_all()
        for question in pending:
            question.answer.set_exception(_stopped_error())
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def submit(self, frame_set: FrameSet) -> None:
        """Put a sweep into the mailbox unless a newer one has been there."""
        with self._condition:
            if self._newest is not None and frame_set.order <= self._newest:
                self.state.superseded += 1
                self.state.not_newer_in_a_row += 1
                return
            self._newest = frame_set.order
            self.state.not_newer_in_a_row = 0
            if self._slot is not None:
                self.state.superseded += 1
            self._slot = frame_set
            self._condition.notify_all()

    def ask(self, question: str, timeout_s: float) -> Future[AnsweredQuestion]:
        """Have a question answered on the next sweep.

        A frame that cannot be decoded does not fail the question: it waits for the next sweep.

        Args:
            question: A text that is not empty.
            timeout_s: Longest wait, on the steady clock; see `expire_questions`.

        Returns:
            A future of the sweep and the answer. Its exception is a `P2dError` if the sweep
            failed or the worker was stopped, and `TimeoutError` after `timeout_s`.

        Raises:
            P2dError: Too many questions wait, or the worker was stopped.
        """
        expires_ns = time.monotonic_ns() + int(timeout_s * NS_PER_S)
        pending = _PendingQuestion(question, expires_ns)
        with self._condition:
            if self._stopping.is_set():
                raise _stopped_error()
            if len(self._pending) >= MAX_PENDING_QUESTIONS:
                raise P2dError('too many questions wait for a sweep; ask again later')
            self._pending.append(pending)
        return pending.answer

    def expire_questions(self) -> None:
        """Fail the questions whose time has run out; call it periodically."""
        if not self._pending:
            return
        now_ns = time.monotonic_ns()
        with self._condition:
            expired = [question for question in self._pending if question.expires_ns <= now_ns]
        self._fail_questions(expired, TimeoutError())

    def _remove(self, questions: Sequence[_PendingQuestion]) -> list[_PendingQuestion]:
        """Remove questions from the pending ones; return those that were still pending."""
        wanted = {id(question) for question in questions}
        with self._condition:
            removed = [question for question in self._pending if id(question) in wanted]
            self._pending = deque(q for q in self._pending if id(q) not in wanted)
        return removed

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
                self._process(frame_set, asked)
                self.state.begun_ns = None

    def _process(self, frame_set: FrameSet, asked: list[_PendingQuestion]) -> None:
        """Answer about one sweep. An error drops the sweep; the thread goes on."""
        try:
            self._answer(frame_set, asked)
        except ImageDecodeError as err:
            self.state.broken_frames.update(err.broken.keys())
            self._count_failure(err)
        except P2dError as err:
            self._count_failure(err)
            # A question may be the cause, and would fail the next sweeps too.
            self._fail_questions(asked, err)
        except Exception as err:
            error = unexpected_error(err)
            self._count_failure(error)
            self._fail_questions(asked, error)

    def _fail_questions(self, questions: Sequence[_PendingQuestion], err: Exception) -> None:
        for question in self._remove(questions):
            question.answer.set_exception(err)

    def _count_failure(self, err: P2dError) -> None:
        self.state.failed += 1
        self.state.failed_in_a_row += 1
        self.state.last_error = str(err)
        self._on_failure(err)

    def _answer(self, frame_set: FrameSet, asked: list[_PendingQuestion]) -> None:
        questions = [*self._pipeline.config.questions, *(question.text for question in asked)]
        streams = self._pipeline.config.stream_partial_answers
        answers = self._pipeline.answer(
            frame_set,
            questions,
            must_stop=self._stopping.is_set,
            on_partial=self._on_partial if streams else None,
        )
        if self._stopping.is_set() or not answers:
            return
        broken = answers[0].broken_frames
        if broken:
            self.state.broken_frames.update(broken.keys())
            self._on_failure(ImageDecodeError(broken))
            frame_set = frame_set.without(broken)
        self._on_answers(frame_set, answers)
        self._resolve(asked, frame_set, answers[len(questions) - len(asked) :])
        self.state.answered += 1
        self.state.failed_in_a_row = 0
        self.state.last_error = ''
        self.state.last_answer_ns = time.monotonic_ns()
        self.state.totals_ms.append(answers[0].times.total_ms)

    def _resolve(
        self,
        asked: list[_PendingQuestion],
        frame_set: FrameSet,
        answers: Sequence[DrivingAnswer],
    ) -> None:
        answer_of = {id(q): answer for q, answer in zip(asked, answers, strict=True)}
        for question in self._remove(asked):
            question.answer.set_result((frame_set, answer_of[id(question)]))


def _stopped_error() -> WorkerStoppedError:
    return WorkerStoppedError('the node was stopped; activate it, then ask again')
