"""The questions of peers that wait for a sweep."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
import threading
import time

from p2d_node.errors import ConfigError, P2dError
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import DrivingAnswer, FrameSet
from p2d_node.ros.worker_state import WorkerState
from p2d_node.units import NS_PER_S

MAX_PENDING_QUESTIONS = 16
"""Questions that may wait for the next sweep; further ones are refused."""


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

    def __init__(self) -> None:
        """Say what to do."""
        super().__init__('the node was stopped; activate it, then ask again')


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question that waits.

    Attributes:
        text: What was asked.
        num_tokens: Tokens of the text.
        expires_ns: When nobody waits for the answer any more, steady clock.
        answer: Gets the answer, or why there is none.
    """

    text: str
    num_tokens: int
    expires_ns: int
    answer: Future[AskedAnswer] = field(default_factory=Future)


class AskedQuestions:
    """Holds the questions until a sweep answers them. Any thread may call it."""

    def __init__(self, pipeline: DrivingPipeline, state: WorkerState) -> None:
        """Create it empty.

        Args:
            pipeline: Counts tokens, and has the parameters.
            state: Counts the questions that get no answer.
        """
        self._pipeline = pipeline
        self._state = state
        self._lock = threading.Lock()
        self._waiting: deque[AskedQuestion] = deque()
        self._is_closed = False

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def ask(self, question: str, timeout_s: float) -> Future[AskedAnswer]:
        """Have a question answered on the next sweep that has time for it.

        A frame that cannot be decoded does not fail the question: it waits for the next sweep.

        Args:
            question: A text that is not empty.
            timeout_s: Longest wait, on the steady clock; see `expire`.

        Returns:
            A future of the answer. Its exception is a `P2dError` if the sweep failed or the worker
            was stopped, and `TimeoutError` after `timeout_s`.

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
        asked = AskedQuestion(question, num_tokens, expires_ns)
        with self._lock:
            self._check_place()
            self._waiting.append(asked)
        return asked.answer

    def _check_place(self) -> None:
        """Raise `P2dError` if no more questions can wait."""
        if self._is_closed:
            raise WorkerStoppedError
        if len(self._waiting) >= MAX_PENDING_QUESTIONS:
            self._state.unanswered += 1
            raise P2dError('too many questions wait for a sweep; ask again later')

    def choose(self, context: str) -> list[AskedQuestion]:
        """Return the oldest questions, at least one, within the budget of tokens of a sweep.

        They go on waiting. Those that are too long behind `context` fail.
        """
        budget = self._pipeline.config.asked_tokens_per_sweep
        chosen: list[AskedQuestion] = []
        with self._lock:
            for question in self._waiting:
                if chosen and question.num_tokens > budget:
                    break
                budget -= question.num_tokens
                chosen.append(question)
        return self._fitting(chosen, context) if context else chosen

    def _fitting(self, chosen: list[AskedQuestion], context: str) -> list[AskedQuestion]:
        fitting = []
        for question in chosen:
            try:
                self._pipeline.check_context(context, (question.text,))
            except ConfigError as err:
                self.fail([question], err)
            else:
                fitting.append(question)
        return fitting

    def answer(
        self,
        asked: Sequence[AskedQuestion],
        frame_set: FrameSet,
        answers: Sequence[DrivingAnswer],
        late: bool,
    ) -> None:
        """Hand out answers; questions that the deadline left no time for go on waiting."""
        answer_of = {id(q): answer for q, answer in zip(asked, answers, strict=True)}
        for question in self._remove([q for q in asked if answer_of[id(q)].num_generated_tokens]):
            question.answer.set_result(AskedAnswer(frame_set, answer_of[id(question)], late))

    def fail(self, questions: Sequence[AskedQuestion], err: Exception) -> None:
        """Fail those of the questions that still wait."""
        for question in self._remove(questions):
            self._state.unanswered += 1
            question.answer.set_exception(err)

    def expire(self) -> None:
        """Fail the questions whose time has run out; call it periodically."""
        if not self._waiting:
            return
        now_ns = time.monotonic_ns()
        with self._lock:
            expired = [question for question in self._waiting if question.expires_ns <= now_ns]
        self.fail(expired, TimeoutError())

    def withdraw(self, answers: Container[Future[AskedAnswer]], err: P2dError) -> None:
        """Fail those of the questions whose answers nobody waits for any more."""
        with self._lock:
            unwanted = [question for question in self._waiting if question.answer in answers]
        self.fail(unwanted, err)

    def close(self) -> None:
        """Fail all questions, and take no more."""
        with self._lock:
            self._is_closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
        for question in waiting:
            question.answer.set_exception(WorkerStoppedError())

    def _remove(self, questions: Sequence[AskedQuestion]) -> list[AskedQuestion]:
        """Remove questions from the waiting ones; return those that still waited."""
        wanted = {id(question) for question in questions}
        with self._lock:
            removed = [question for question in self._waiting if id(question) in wanted]
            self._waiting = deque(q for q in self._waiting if id(q) not in wanted)
        return removed
