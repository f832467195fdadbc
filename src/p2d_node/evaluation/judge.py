"""Tasks for judges of free answers, parsing of their replies, and a cache of their judgements.

There is no judge by default. Scores that need one are then absent from the report, never zero.
A judge gives one score per answer (DriveLM), or one rating per criterion (DriveLMM-o1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
import hashlib
import json
import re
from typing import Any, Protocol

from p2d_node.errors import BackendUnavailableError, ConfigError, quote
from p2d_node.evaluation.record_file import OTHER_FOLDER, RecordFile

MAX_SCORE = 100.0
MIN_RATING, MAX_RATING = 1.0, 10.0

NUMBER = re.compile(r'[-+.,\d]+(?:[eE][-+]?\d+)?')
"""Anything that may be meant as one number, including 82,5 and 50-60, which are refused."""

STATED_MEAN = 'Overall Score'
"""Name under which a judge of criteria may state their mean."""

Triple = tuple[str, str, str]
"""Question, answer and reference."""

Judgement = Any
"""Return value of `JudgeTask.read`, JSON data; None if the judge has no judgement."""


KEPT_FIELDS: Mapping[str, Any] = {'judgement': object}
"""Fields of the record of a judgement beside its `id`: name to type."""


class UnreadableReplyError(BackendUnavailableError):
    """A reply of a judge is not a judgement."""


class MisalignedRepliesError(BackendUnavailableError):
    """There are more replies than answers, so they cannot be assigned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeTask:
    """The task of a judge for each answer.

    Attributes:
        instruction: System prompt for a chat model.
        needed: Description of a valid reply, for messages.
        read: Converts a reply to a judgement; raises `UnreadableReplyError`.
        more: Extra fields that a command gets with every answer.
    """

    instruction: str
    needed: str
    read: Callable[[str], Judgement]
    more: Mapping[str, Any] = field(default_factory=dict)


class Judge(Protocol):
    """Judges free answers.

    Attributes:
        identity: Everything that its judgements depend on beside task and answer; JSON data.
    """

    identity: Mapping[str, Any]

    def judge(self, task: JudgeTask, triples: Sequence[Triple]) -> Iterator[tuple[int, Judgement]]:
        """Yield the index of an answer in `triples` and its judgement, in any order.

        Raises:
            BackendUnavailableError: The judge fails.
        """
        ...


class CachedJudge:
    """A judge with a file of judgements, so that no answer is judged twice.

    Attributes:
        num_kept: Judgements so far that came from an earlier run.
        num_unjudged: Answers so far without a judgement; the next run asks for them again.
    """

    def __init__(
        self,
        judge: Judge,
        kept: RecordFile,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Combine a judge with an open file.

        Args:
            judge: Judges the answers that the file does not have.
            kept: Stores every judgement.
            on_progress: Called with the number of judged answers and of all answers.
        """
        self._judge, self._kept, self._on_progress = judge, kept, on_progress
        self.num_kept = self.num_unjudged = 0

    def judge(self, task: JudgeTask, triples: Sequence[Triple]) -> list[Judgement]:
        """Return a judgement per answer, None if the judge has none.

        Raises:
            BackendUnavailableError: The judge fails; its earlier judgements are kept.
            ConfigError: A judgement of an earlier run is none of this task.
        """
        keys = [self._key(task, triple) for triple in triples]
        # Equal answers to equal questions are judged once.
        wanted = {k: t for k, t in zip(keys, triples, strict=True) if k not in self._kept.done}
        self.num_kept += sum(key not in wanted for key in keys)
        self._ask(task, wanted)
        records = [self._kept.done.get(key) for key in keys]
        self.num_unjudged += records.count(None)
        return [None if record is None else self._read(task, record) for record in records]

    def _read(self, task: JudgeTask, record: Mapping[str, Any]) -> Judgement:
        try:
            return task.read(json.dumps(record['judgement']))
        except UnreadableReplyError as err:
            raise ConfigError(f'{self._kept.path}: {err}; {OTHER_FOLDER}') from err

    def _ask(self, task: JudgeTask, wanted: Mapping[str, Triple]) -> None:
        if not wanted:
            return
        keys, mark = list(wanted), self._kept.mark()
        self._on_progress(0, len(keys))
        replies = self._judge.judge(task, list(wanted.values()))
        try:
            for done, (index, judgement) in enumerate(replies, 1):
                if judgement is not None:
                    self._kept.append([{'id': keys[index], 'judgement': judgement}])
                self._on_progress(done, len(keys))
        except MisalignedRepliesError:
            self._kept.go_back(mark)
            raise
        except BackendUnavailableError as err:
            raise BackendUnavailableError(
                f'{err}; the same command continues after the judgements so far '
                f'({len(self._kept.done)})'
            ) from err

    def _key(self, task: JudgeTask, triple: Triple) -> str:
        content = [self._judge.identity, task.instruction, triple]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def as_item(triple: Triple) -> dict[str, str]:
    """Return a triple as a JSON object for judges."""
    return dict(zip(('question', 'answer', 'reference'), triple, strict=True))


def _read_score(text: str) -> float:
    """Parse the only number of a text; words around it are allowed, a second number is not."""
    numbers = [word for word in NUMBER.findall(text) if any(map(str.isdigit, word))]
    try:
        (number,) = numbers
        score = float(number.rstrip('.,'))
    except ValueError:
        score = -1.0
    if not 0.0 <= score <= MAX_SCORE:
        raise UnreadableReplyError(f'judge: got {quote(text)}, allowed: one number from 0 to 100')
    return score


SCORE = JudgeTask(
    instruction=(
        'You grade answers about driving scenes. Compare the answer with the reference: same '
        'objects, same states, same decision and reason? Reply with one number from 0 '
        '(contradicts it) to 100 (says the same), and nothing else.'
    ),
    needed='one number per line',
    read=_read_score,
)
"""One score per answer, 0 to 100."""


def rating_task(criteria: Mapping[str, str]) -> JudgeTask:
    """Return the task to rate each criterion from 1 to 10; a judgement maps names to ratings.

    Args:
        criteria: Name of each criterion to its meaning.
    """
    asked = '; '.join(f'{name}: {meaning}' for name, meaning in criteria.items())
    return JudgeTask(
        instruction=(
            'You rate the reasoning in answers about driving scenes against a reference. Rate '
            'each criterion from 1 (not at all) to 10 (fully). Reply with one JSON object that '
            'maps the name of each criterion to its number, and nothing else. The criteria: '
            f'{asked}.'
        ),
        needed='one JSON object per line',
        read=lambda text: _read_ratings(text, criteria),
        more={'criteria': dict(criteria)},
    )


def _read_ratings(text: str, criteria: Mapping[str, str]) -> dict[str, float]:
    """Parse a JSON object; words around it are allowed, as chat models often add some."""
    try:
        reply = json.loads(text[text.find('{') : text.rfind('}') + 1])
    except (ValueError, RecursionError) as err:
        raise UnreadableReplyError(
            f'judge: got {quote(text)}, allowed: a JSON object with a number per criterion'
        ) from err
    names = [*criteria, *(name for name in (STATED_MEAN,) if name in reply)]
    return {name: _to_rating(name, reply.get(name)) for name in names}


def _to_rating(name: str, value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not MIN_RATING <= value <= MAX_RATING:
        raise UnreadableReplyError(
            f'judge: {name}: got {quote(value)}, allowed: a number from 1 to 10'
        )
    return float(value)
