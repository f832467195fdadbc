"""The thread that answers: it takes the latest sweep, runs the pipeline and hands out answers.

A sweep that arrives while another is in work waits in a mailbox with one slot. A newer sweep
replaces it, so answers never fall behind the cameras.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
import os
import threading
import time

from p2d_node.config import DriveConfig
from p2d_node.errors import DeviceLostError, ImageDecodeError, P2dError
from p2d_node.language_model.conversation import OnPartial
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import DrivingAnswer, FrameSet, PassCounts
from p2d_node.ros.asked_questions import AskedQuestion, AskedQuestions
from p2d_node.ros.look_ahead import LookAhead
from p2d_node.ros.sweep_age import SweepAge
from p2d_node.ros.unexpected_error import unexpected_error
from p2d_node.ros.worker_state import WorkerState
from p2d_node.units import NS_PER_S
from p2d_node.vision_frontend import PreparedFrames

WORKER_NICENESS = 5
"""Lower priority than the thread that receives frames: with few cores a busy model must not make
sweeps incomplete."""

DECODE_S = 60.0
"""Longest time without a decoded frame, if `max_sweep_s` is not longer. A frame takes seconds at
most: it is slow, while a decoder that takes longer hangs."""

STOP_CHECK_S = 0.1

OnAnswers = Callable[[FrameSet, Sequence[DrivingAnswer], bool], None]
"""Gets a sweep, answers about it, and whether they are late."""


class SweepWorker:
    """Owns the mailbox and the thread.

    `submit` and `stop` may be called from any thread. The callbacks run on the worker's thread.

    Attributes:
        state: Counters and times.
        questions: Those that were asked and wait for a sweep.
        age: Tells the age of a sweep.
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
        self.questions = AskedQuestions(pipeline, self.state)
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
        self._stopping = threading.Event()
        self._thread = thread
        self._look_ahead = LookAhead(self._prepare, look_ahead_thread)
        self._running: Future[None] | None = None

    def start(self) -> None:
        """Begin to answer."""
        self._running = self._thread.submit(self._run)

    def stop(self, timeout_s: float, longest_s: float = 0.0) -> bool:
        """Stop the answer in work and fail the pending questions.

        Args:
            timeout_s: Longest wait without progress, such as a frame that was decoded.
            longest_s: Longest wait in all; less than `timeout_s`: that.

        Returns:
            True if work ended in time.
        """
        stopped_ns = time.monotonic_ns()
        with self._condition:
            self._stopping.set()
            self._condition.notify_all()
        self.questions.close()
        while self.is_alive:
            now_ns = time.monotonic_ns()
            moved_ns = max(stopped_ns, self._pipeline.progress[1])
            if now_ns - stopped_ns > max(timeout_s, longest_s) * NS_PER_S:
                break
            if now_ns - moved_ns > timeout_s * NS_PER_S:
                break
            if self._running is not None:
                wait([self._running], STOP_CHECK_S)
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
            prepared = self._look_ahead.begin_work(frame_set)
        self.state.begun_ns = time.monotonic_ns()
        self._process(frame_set, prepared)
        self.state.begun_ns = None
        with self._condition:
            self._look_ahead.end_work()

    def _prepare(self, frame_set: FrameSet) -> PreparedFrames:
        _lower_priority()
        return self._pipeline.prepare(frame_set)

    def _process(self, frame_set: FrameSet, prepared: Future[PreparedFrames] | None) -> None:
        """Answer about one sweep. An error drops the sweep; the thread goes on."""
        limit_ms = self._pipeline.config.max_answer_age_ms
        if self._is_older(frame_set, limit_ms):
            self.state.too_old += 1
            self.state.late_in_a_row += 1
            return
        asked: Sequence[AskedQuestion] = ()
        try:
            context = self._context()
            asked = self.questions.choose(context)
            self._answer(frame_set, asked, context, prepared, limit_ms)
        except ImageDecodeError as err:
            self._count_broken(err)
            self._count_failure(err)
        except P2dError as err:
            if isinstance(err, DeviceLostError):
                self._fault = str(err)
            self._count_failure(err)
            # A question may be the cause, and would fail the next sweeps too.
            self.questions.fail(asked, err)
        except Exception as err:
            error = unexpected_error(err)
            self._count_failure(error)
            self.questions.fail(asked, error)

    def _is_older(self, frame_set: FrameSet, limit_ms: float) -> bool:
        return 0.0 < limit_ms < self.age.age_ms(frame_set)

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
        asked: Sequence[AskedQuestion],
        context: str,
        prepared: Future[PreparedFrames] | None,
        limit_ms: float,
    ) -> None:
        config = self._pipeline.config

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
        for are_asked, answers in zip((False, True), groups, strict=True):
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
            begun = [a for a in answers if a.num_generated_tokens] if are_asked else answers
            self._on_answers(frame_set, begun, late)
            published += begun
            if are_asked:
                self.questions.answer(asked, frame_set, answers, late)
        if published:
            self._count_passes(published)
            self._on_sweep(frame_set, published)

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


def _lower_priority() -> None:
    # On Linux niceness belongs to the thread; the threads it starts inherit it.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WORKER_NICENESS)
