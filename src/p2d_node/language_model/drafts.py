"""Drafts: what an answer will probably say, so that one decoder pass verifies several tokens.

A draft never changes an answer: `generate_greedy` accepts only tokens that it would have chosen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
import itertools

TokenIds = Sequence[int]

FIRST_PROBABILITY = 0.8
"""That a drafted token is right, before anything is known of a question."""

WORTH_A_DRAFT = 1.05
"""What a draft must promise, in times of plain decoding: the promise is an estimate."""

LEARNING_RATE = 0.2
"""Share of one token in the estimate: it follows the last ten tokens or so."""

MAX_QUESTIONS_KEPT = 512
"""Questions whose last answers are kept: twice as many as a sweep may have."""


class Draft:
    """Follows one answer through earlier texts, and says what comes next there."""

    def __init__(self, texts: Sequence[TokenIds], *, aligned: bool) -> None:
        """Begin an answer.

        Args:
            texts: Token ids.
            aligned: Whether the answer probably begins like the first text, and has a token of
                its own where they differ. Otherwise two equal tokens have to be found first.
        """
        self._texts = texts
        self._aligned = aligned
        self._text: TokenIds = texts[0] if aligned else ()
        self._next = 0
        self._after_match = 0
        self._last: int | None = None

    def peek(self, count: int) -> TokenIds:
        """Return the next tokens, at most `count`."""
        return self._text[self._next : self._next + count]

    def follow(self, token: int) -> None:
        """Go on: the answer's next token is `token`."""
        pair, self._last = (self._last, token), token
        if self._next < len(self._text) and self._text[self._next] == token:
            self._next += 1
            self._after_match = self._next
        elif not self._find(pair):
            self._next = self._next + 1 if self._aligned else len(self._text)

    def _find(self, pair: tuple[int | None, int]) -> bool:
        """Go to where the last two tokens occur next; tells whether they do."""
        texts = [self._text] if self._aligned else reversed(self._texts)
        for text in texts:
            start = self._after_match if self._aligned else 0
            rest = itertools.islice(itertools.pairwise(text), start, None)
            for index, other in enumerate(rest, start):
                if other == pair:
                    self._text, self._next = text, index + 2
                    self._after_match = self._next
                    return True
        return False


@dataclass(slots=True)
class _Memory:
    """What is kept of one question.

    Attributes:
        answer: Its last answer, token ids.
        probability: That a drafted token of an answer to it is right.
    """

    answer: TokenIds = ()
    probability: float = FIRST_PROBABILITY

    def learn(self, was_right: bool) -> None:
        self.probability += LEARNING_RATE * (was_right - self.probability)


@dataclass(slots=True)
class _Row:
    draft: Draft | None
    memory: _Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCosts:
    """How the time of a decoder pass grows, and which lengths of drafts it may have.

    Attributes:
        several: Time of a pass over several tokens, without `per_token`, in times of a pass over
            one token.
        per_token: Time that each token adds to such a pass.
        any_length: Whether drafts may have any length; otherwise only none or the longest.
    """

    several: float = 1.0
    per_token: float = 0.0
    any_length: bool = True

    def time_of(self, num_tokens: int) -> float:
        """Return the time of a pass, in times of a pass over one token."""
        return 1.0 if num_tokens == 1 else self.several + self.per_token * num_tokens

    def best_length(
        self,
        rows: Sequence[tuple[float, int]],
        *,
        num_tokens: int,
        tokens_per_length: int,
        limit: int,
    ) -> int:
        """Return the length of the drafts that gives most tokens per time.

        Args:
            rows: Per answer the probability of a drafted token, and the length of its draft.
            num_tokens: Tokens of the pass without drafts.
            tokens_per_length: Tokens that one more drafted column adds to the pass.
            limit: Largest length.
        """
        best, best_rate = 0, WORTH_A_DRAFT * len(rows) / self.time_of(num_tokens)
        expected = float(len(rows))
        for length in range(1, limit + 1):
            expected += sum(p**length for p, available in rows if available >= length)
            num_tokens += tokens_per_length
            rate = expected / self.time_of(num_tokens)
            if rate > best_rate and (self.any_length or length == limit):
                best, best_rate = length, rate
        return best


class Drafts:
    """The drafts of a batch of answers.

    Attributes:
        proposed: Per answer the drafted tokens of the last pass.
        width: Number of tokens per row of that pass.
    """

    def __init__(self, rows: Sequence[_Row], costs: PassCosts, max_tokens: int) -> None:
        self._rows = rows
        self._costs = costs
        self._max_tokens = max_tokens
        self.proposed: list[TokenIds] = [()] * len(rows)
        self.width = 1

    def propose(self, num_tokens: int, room: Sequence[int]) -> None:
        """Set `proposed` to the drafts that are worth verifying in the next pass.

        Args:
            num_tokens: Tokens of that pass without drafts.
            room: Per answer the largest number of drafted tokens; negative if it has ended.
        """
        limits = [max(0, min(self._max_tokens, number)) for number in room]
        drafts = [
            row.draft.peek(limit) if row.draft and limit else ()
            for row, limit in zip(self._rows, limits, strict=True)
        ]
        length = self._costs.best_length(
            [
                (row.memory.probability, len(draft))
                for row, draft, number in zip(self._rows, drafts, room, strict=True)
                if number >= 0
            ],
            num_tokens=num_tokens,
            tokens_per_length=len(self._rows),
            limit=self._max_tokens if any(drafts) else 0,
        )
        self.proposed = [draft[:length] for draft in drafts]
        self.width = 1 + length

    @property
    def padded(self) -> list[list[int]]:
        """`proposed`, each with zeros up to the tokens that a pass has for drafts."""
        length = self.width - 1
        return [[*ids, *[0] * (length - len(ids))] for ids in self.proposed]

    def follow(self, index: int, token: int) -> None:
        """Learn from the next token of an answer."""
        row = self._rows[index]
        if row.draft is None:
            return
        guess = row.draft.peek(1)
        if guess:
            row.memory.learn(guess[0] == token)
        row.draft.follow(token)


def no_drafts(num_rows: int) -> Drafts:
    """Return drafts without tokens: plain decoding."""
    return Drafts([_Row(None, _Memory()) for _ in range(num_rows)], PassCosts(), 0)


@dataclass(slots=True)
class Drafter:
    """Where drafts come from. Use it from one thread at a time.

    Attributes:
        costs: Of decoder passes on this device.
    """

    costs: PassCosts
    _memories: OrderedDict[str, _Memory] = field(default_factory=OrderedDict)
    _answers: list[TokenIds] = field(default_factory=list)

    def begin_sweep(self) -> None:
        """Forget the other answers of the sweep before."""
        self._answers = []

    def begin(
        self, source: str, questions: Sequence[str], endings: Iterable[TokenIds], max_tokens: int
    ) -> Drafts:
        """Return the drafts of a batch of answers.

        Args:
            source: last_sweep: the last answer to the same question; prompt_lookup: the question
                and the other answers of the sweep; none.
            questions: Their texts.
            endings: Per question its token ids.
            max_tokens: Largest number of drafted tokens per pass.
        """
        if source == 'none' or max_tokens == 0:
            return no_drafts(len(questions))
        rows = [
            self._begin_row(source, self._memory(question), ids)
            for question, ids in zip(questions, endings, strict=True)
        ]
        return Drafts(rows, self.costs, max_tokens)

    def _begin_row(self, source: str, memory: _Memory, ids: TokenIds) -> _Row:
        if source == 'prompt_lookup':
            return _Row(Draft([ids, *self._answers], aligned=False), memory)
        return _Row(Draft([memory.answer], aligned=True) if memory.answer else None, memory)

    def end(self, question: str, answer: TokenIds) -> None:
        """Keep an answer: its token ids, with the end token."""
        self._memory(question).answer = answer
        self._answers.append(answer)

    def last_answer(self, question: str) -> TokenIds:
        """Return the token ids of the last answer to a question; empty if there is none."""
        return self._memory(question).answer

    def forget(self) -> None:
        """Forget all answers, and how often drafts were right."""
        self._memories.clear()
        self._answers = []

    def _memory(self, question: str) -> _Memory:
        memory = self._memories.pop(question, None) or _Memory()
        self._memories[question] = memory
        if len(self._memories) > MAX_QUESTIONS_KEPT:
            self._memories.popitem(last=False)
        return memory
