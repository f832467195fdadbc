"""The thread that answers: it takes the latest sweep, runs the pipeline and hands out answers.

A sweep that arrives while another is in work waits in a mailbox with one slot. A newer sweep
replaces it, so answers never fall behind the cameras.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
import os
import threading
import time

from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError, DeviceLostError, ImageDecodeError, P2dError
from p2d_node.language_model.conversation import OnPartial
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import DrivingAnswer, FrameSet, PassCounts
from p2d_node.ros.look_ahead import LookAhead
from p2d_node.ros.sweep_age import SweepAge
from p2d_node.ros.unexpected_error import unexpected_error
from p2d_node.units import NS_PER_S
from p2d_node.vision_frontend import PreparedFrames

MAX_PENDING_QUESTIONS = 16
"""Questions that may wait for the next sweep; further ones are refused."""

WORKER_NICENESS = 5
"""Lower priority than the thread that receives frames: with few cores a busy model must not make
sweeps incomplete."""

DECODE_S = 60.0
"""Longest time without a decoded frame, if `max_sweep_s` is not longer. A frame takes seconds at
most: it is slow, while a decoder that takes longer hangs."""

LATENCY_WINDOW = 120
"""Sweeps over which latency is summarised: ten seconds at 12 Hz."""

OnAnswers = Callable[[FrameSet, Sequence[DrivingAnswer], bool], None]
"""Gets a sweep, answers about it, and whether they are late."""


@dataclass(frozen=True, slots=True)
class AskedAnswer:
    """The answer to a question that was asked.

    Attributes:
        frame_set: The sweep that it is about.
        answer: The answer.
        late: Whether the sweep was older than `max_answer_age_ms`.
    """

    frame_set: FrameSet
    answer: DrivingAnswer
    late: bool


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


@dataclass(frozen=True, slots=True)
class _PendingQuestion:
    text: str
    num_tokens: int
    expires_ns: int
    answer: Future[AskedAnswer] = field(default_factory=Future)


class SweepWorker:
    """Owns the mailbox, the pending questions and the thread.

    `submit`, `ask`, `expire_questions` and `stop` may be called from any thread. The callbacks
    run on the worker's thread.
    """

    def __init__(
        self,
        pipeline: DrivingPipeline,
        *,
        thread: Executor,
        look_ahead_thread: Executor,
        age: SweepAge,
        context: Callable[[], str],
        on_answers: OnAnswers,
        on_sweep: Callable[[FrameSet, Sequence[DrivingAnswer]], None],
        on_failure: Callable[[P2dError], None],
        on_broken: Callable[[ImageDecodeError], None],
        on_partial: OnPartial,
        on_outdated: Callable[[], None],
    ) -> None:
        """Create the worker; `start` begins to answer.

        Args:
            pipeline: Answers questions about a sweep.
            thread: Runs one function at a time, in one thread for all activations: torch keeps
                memory for each thread that it has run in.
            look_ahead_thread: The same, for the sweep that waits while another is in work.
            age: Tells the age of a sweep.
            context: Returns what stands before each question.
            on_answers: Called with a sweep and the answers to the configured questions, and then
                with those to the questions that were asked.
            on_sweep: Called with a sweep and the answers about it once all are published.
            on_failure: Called with the error that made a sweep fail.
            on_broken: Called with the frames that a sweep was answered without.
            on_partial: Called with question and answer while an answer grows, if
                `stream_partial_answers` is set.
            on_outdated: Called when a sweep was dropped because a parameter changed.
        """
        self.state = WorkerState()
        self._pipeline = pipeline
        self.age = age
        self._context = context
        self._on_answers = on_answers
        self._on_sweep = on_sweep
        self._on_failure = on_failure
        self._on_broken = on_broken
        self._fault = ''
        self._on_partial = on_partial
        self._on_outdated = on_outdated
        self._condition = threading.Condition()
        self._slot: FrameSet | None = None
        self._newest: tuple[int, int] | None = None
        self._pending: deque[_PendingQuestion] = deque()
        self._stopping = threading.Event()
        self._thread = thread
        self._look_ahead = LookAhead(self._prepare, look_ahead_thread)
        self._running: Future[None] | None = None

    def start(self) -> None:
        """Begin to answer."""
        self._running = self._thread.submit(self._run)

    def stop(self, timeout_s: float) -> bool:
        """Stop the answer in work and fail the pending questions.

        Returns:
            True if work ended within `timeout_s`.
        """
        with self._condition:
            self._stopping.set()
            pending = list(self._pending)
            self._pending.clear()
            self._condition.notify_all()
        for question in pending:
            question.answer.set_exception(_stopped_error())
        if self._running is not None:
            wait([self._running], timeout_s)
        return not self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether work has begun and has not ended."""
        return self._running is not None and not self._running.done()

    def fault(self, watched_since_ns: int) -> str:
        """Return why this worker will answer no more; empty if nothing is wrong.

        A sweep in which nothing has moved for `max_sweep_s` counts as a fault too.

        Args:
            watched_since_ns: When the process last went on after a pause, steady clock. The time
                before does not count.
        """
        if self._fault:
            return self._fault
        stage, standing_s = self._standing_still(watched_since_ns)
        limit_s = self._pipeline.config.max_sweep_s
        if limit_s > 0.0 and stage == 'decode':
            limit_s = max(limit_s, DECODE_S)
        if 0.0 < limit_s < standing_s:
            return (
                f'a sweep has stood still for {standing_s:.0f} s in stage {stage}, allowed: '
                f'{limit_s:g} (max_sweep_s); check the {self._pipeline.device.type} with its '
                'own tools, or raise max_sweep_s if it is only slow'
            )
        return ''

    @property
    def stage(self) -> str:
        """The stage in work; `publish` between stages."""
        return self._pipeline.progress[0] or 'publish'

    def _standing_still(self, watched_since_ns: int) -> tuple[str, float]:
        """Return the stage in work and for how many seconds nothing has moved in it."""
        begun_ns = self.state.begun_ns
        if begun_ns is None:
            return '', 0.0
        moved_ns = max(begun_ns, self._pipeline.progress[1], watched_since_ns)
        return self.stage, (time.monotonic_ns() - moved_ns) / NS_PER_S

    def submit(self, frame_set: FrameSet) -> None:
        """Put a sweep into the mailbox unless a newer one has been there."""
        self.age.note(frame_set)
        with self._condition:
            if self._newest is not None and frame_set.order <= self._newest:
                self.state.superseded += 1
                self.state.not_newer_in_a_row += 1
                return
            self._newest = frame_set.order
            self.state.not_newer_in_a_row = 0
            if self._is_short(frame_set):
                return
            if self._slot is not None:
                self.state.superseded += 1
            self._slot = frame_set
            self._look_ahead.offer(frame_set)
            self._condition.notify_all()

    def _is_short(self, frame_set: FrameSet) -> bool:
        """Count a sweep whose clip is not full; tell whether it is dropped for that."""
        is_short = len(frame_set.earlier) + 1 < self._pipeline.clip.num_frames
        self.state.short_clips += is_short
        self.state.short_in_a_row = self.state.short_in_a_row + 1 if is_short else 0
        return is_short and self._pipeline.config.short_clip_policy == 'skip'

    def ask(self, question: str, timeout_s: float) -> Future[AskedAnswer]:
        """Have a question answered on the next sweep that has time for it.

        A frame that cannot be decoded does not fail the question: it waits for the next sweep.

        Args:
            question: A text that is not empty.
            timeout_s: Longest wait, on the steady clock; see `expire_questions`.

        Returns:
            A future of the answer. Its exception is a `P2dError` if the sweep
            failed or the worker was stopped, and `TimeoutError` after `timeout_s`.

        Raises:
            ConfigError: The model cannot be asked this question, or it is too long.
            P2dError: Too many questions wait, or the worker was stopped.
        """
        self._check_place()  # before the tokens are counted, which takes milliseconds
        num_tokens = self._pipeline.count_tokens(question)
        budget = self._pipeline.config.asked_tokens_per_sweep
        if num_tokens > budget:
            raise ConfigError(
                f'question: got {num_tokens} tokens, allowed: up to {budget} '
                '(asked_tokens_per_sweep); ask a shorter one'
            )
        expires_ns = time.monotonic_ns() + int(timeout_s * NS_PER_S)
        pending = _PendingQuestion(question, num_tokens, expires_ns)
        with self._condition:
            self._check_place()
            self._pending.append(pending)
        return pending.answer

    def _check_place(self) -> None:
        """Raise `P2dError` if no more questions can wait."""
        if self._stopping.is_set():
            raise _stopped_error()
        if len(self._pending) >= MAX_PENDING_QUESTIONS:
            self.state.unanswered += 1
            raise P2dError('too many questions wait for a sweep; ask again later')

    def expire_questions(self) -> None:
        """Fail the questions whose time has run out; call it periodically."""
        if not self._pending:
            return
        now_ns = time.monotonic_ns()
        with self._condition:
            expired = [question for question in self._pending if question.expires_ns <= now_ns]
        self._fail_questions(expired, TimeoutError())

    def withdraw(self, answers: Container[Future[AskedAnswer]], err: P2dError) -> None:
        """Fail those of the pending questions whose answers nobody waits for any more."""
        with self._condition:
            unwanted = [question for question in self._pending if question.answer in answers]
        self._fail_questions(unwanted, err)

    def _remove(self, questions: Sequence[_PendingQuestion]) -> list[_PendingQuestion]:
        """Remove questions from the pending ones; return those that were still pending."""
        wanted = {id(question) for question in questions}
        with self._condition:
            removed = [question for question in self._pending if id(question) in wanted]
            self._pending = deque(q for q in self._pending if id(q) not in wanted)
        return removed

    def _run(self) -> None:
        _lower_priority()
        try:
            while not self._stopping.is_set():
                self._take_and_process()
        except BaseException as err:  # a callback raised; the watchdog reports it
            self._fault = f'the worker has ended: {unexpected_error(err)}'

    def _take_and_process(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._slot is not None or self._stopping.is_set())
            frame_set, self._slot = self._slot, None
            if frame_set is None:
                return
            asked = self._choose_asked()
            prepared = self._look_ahead.begin_work(frame_set)
        self.state.begun_ns = time.monotonic_ns()
        self._process(frame_set, asked, prepared)
        self.state.begun_ns = None
        with self._condition:
            self._look_ahead.end_work()

    def _prepare(self, frame_set: FrameSet) -> PreparedFrames:
        _lower_priority()
        return self._pipeline.prepare(frame_set)

    def _choose_asked(self) -> list[_PendingQuestion]:
        """Return the oldest pending questions, at least one, within the budget of tokens."""
        budget = self._pipeline.config.asked_tokens_per_sweep
        chosen: list[_PendingQuestion] = []
        for question in self._pending:
            if chosen and question.num_tokens > budget:
                break
            budget -= question.num_tokens
            chosen.append(question)
        return chosen

    def _process(
        self,
        frame_set: FrameSet,
        asked: list[_PendingQuestion],
        prepared: Future[PreparedFrames] | None,
    ) -> None:
        """Answer about one sweep. An error drops the sweep; the thread goes on."""
        limit_ms = self._pipeline.config.max_answer_age_ms
        if self._is_older(frame_set, limit_ms):
            self.state.too_old += 1
            self.state.late_in_a_row += 1
            return
        try:
            self._answer(frame_set, asked, prepared, limit_ms)
        except ImageDecodeError as err:
            self._count_broken(err)
            self._count_failure(err)
        except P2dError as err:
            if isinstance(err, DeviceLostError):
                self._fault = str(err)
            self._count_failure(err)
            # A question may be the cause, and would fail the next sweeps too.
            self._fail_questions(asked, err)
        except Exception as err:
            error = unexpected_error(err)
            self._count_failure(error)
            self._fail_questions(asked, error)

    def _is_older(self, frame_set: FrameSet, limit_ms: float) -> bool:
        return 0.0 < limit_ms < self.age.age_ms(frame_set)

    def _fail_questions(self, questions: Sequence[_PendingQuestion], err: Exception) -> None:
        for question in self._remove(questions):
            self.state.unanswered += 1
            question.answer.set_exception(err)

    def _count_broken(self, err: ImageDecodeError) -> None:
        self.state.broken_frames.update(err.broken.keys())
        self.state.broken_reasons.update(err.broken)

    def _count_failure(self, err: P2dError) -> None:
        self.state.failed += 1
        self.state.failed_in_a_row += 1
        self.state.last_error = str(err)
        self._on_failure(err)

    def _answer(
        self,
        frame_set: FrameSet,
        asked: list[_PendingQuestion],
        prepared: Future[PreparedFrames] | None,
        limit_ms: float,
    ) -> None:
        config, context = self._pipeline.config, self._context()
        asked = self._fitting(asked, context)

        def must_stop() -> bool:
            with self._condition:
                self._look_ahead.offer(self._slot)
            return self._stopping.is_set() or self._is_outdated(config)

        groups = self._pipeline.answer_groups(
            frame_set,
            (config.questions, tuple(question.text for question in asked)),
            context=context,
            must_stop=must_stop,
            on_partial=self._on_partial if config.stream_partial_answers else None,
            prepared=prepared,
        )
        published: list[DrivingAnswer] = []
        for pending, answers in zip((None, asked), groups, strict=True):
            if self._stopping.is_set():
                return
            if self._is_outdated(config):
                self._drop_outdated()
                return
            if not answers:
                continue
            frame_set = self._leave_out_broken(frame_set, answers[0].broken_frames)
            late = self._is_older(frame_set, limit_ms)
            if not published:
                self._count_answered(answers[0], late)
            begun = answers if pending is None else _within_deadline(answers)
            self._on_answers(frame_set, begun, late)
            published += begun
            if pending is not None:
                self._resolve(pending, frame_set, answers, late)
        if published:
            self._count_passes(published)
            self._on_sweep(frame_set, published)

    def _fitting(self, asked: list[_PendingQuestion], context: str) -> list[_PendingQuestion]:
        """Fail the questions that are too long behind `context`; return the others."""
        if not context:
            return asked
        fitting = []
        for question in asked:
            try:
                self._pipeline.check_context(context, (question.text,))
            except ConfigError as err:
                self._fail_questions([question], err)
            else:
                fitting.append(question)
        return fitting

    def _is_outdated(self, config: DriveConfig) -> bool:
        """Tell whether the limits of the work have changed since a sweep began with `config`.

        A limit that makes a sweep endless could otherwise never be taken back.
        """
        newest = self._pipeline.config
        return newest is not config and newest.work_limits != config.work_limits

    def _drop_outdated(self) -> None:
        """Drop the sweep in work; the questions that were asked wait for the next one."""
        self.state.outdated += 1
        self._on_outdated()

    def _leave_out_broken(self, frame_set: FrameSet, broken: Mapping[str, str]) -> FrameSet:
        """Return the sweep as it was answered about; with drop_view broken frames are left out."""
        if not broken or frame_set.broken:
            return frame_set
        err = ImageDecodeError(broken)
        self._count_broken(err)
        self._on_broken(err)
        return frame_set.without(broken)

    def _count_answered(self, answer: DrivingAnswer, late: bool) -> None:
        self.state.answered += 1
        self.state.late += late
        self.state.late_in_a_row = self.state.late_in_a_row + 1 if late else 0
        self.state.failed_in_a_row = 0
        self.state.last_error = ''
        self.state.last_answer_ns = time.monotonic_ns()
        self.state.totals_ms.append(answer.times.total_ms)

    def _count_passes(self, answers: Sequence[DrivingAnswer]) -> None:
        num_tokens = sum(answer.num_generated_tokens for answer in answers)
        passes = PassCounts.total(answer.passes for answer in answers)
        self.state.decoding.append((num_tokens, passes))

    def _resolve(
        self,
        asked: Sequence[_PendingQuestion],
        frame_set: FrameSet,
        answers: Sequence[DrivingAnswer],
        late: bool,
    ) -> None:
        """Hand out answers; questions that the deadline left no time for wait for a sweep."""
        answer_of = {id(q): answer for q, answer in zip(asked, answers, strict=True)}
        answered = [q for q in asked if _within_deadline([answer_of[id(q)]])]
        for question in self._remove(answered):
            question.answer.set_result(AskedAnswer(frame_set, answer_of[id(question)], late))


def _lower_priority() -> None:
    # On Linux niceness belongs to the thread; the threads it starts inherit it.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WORKER_NICENESS)


def _within_deadline(answers: Sequence[DrivingAnswer]) -> list[DrivingAnswer]:
    """Return the answers without those that the deadline left no time to begin."""
    return [answer for answer in answers if answer.num_generated_tokens]


def _stopped_error() -> WorkerStoppedError:
    return WorkerStoppedError('the node was stopped; activate it, then ask again')
