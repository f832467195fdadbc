"""Checks and counts the answers of a model to packed questions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from p2d_sim.questions import Question
from p2d_sim.training.samples import IGNORED


def right_answers(logits: Tensor, batch: dict[str, Tensor], num_questions: int) -> Tensor:
    """Return for each question whether greedy decoding gives the right answer.

    It does if every token of the answer, the end token included, is the most probable one after
    the tokens before it.

    Args:
        logits: Float [1, tokens, vocabulary] over a packed row with its answers.
        batch: The packed row, each [1, ...].
        num_questions: Questions in the row.

    Returns:
        bool [questions].
    """
    labels, owner = batch['labels'][0], batch['owner'][0]
    wrong = (logits[0].argmax(dim=-1) != labels) & (labels != IGNORED)
    return torch.tensor([not bool(wrong[owner == i].any()) for i in range(num_questions)])


class Score:
    """Counts right answers per kind of question."""

    def __init__(self) -> None:
        self._right: dict[str, int] = defaultdict(int)
        self._asked: dict[str, int] = defaultdict(int)

    def add(self, questions: Sequence[Question], right: Sequence[bool]) -> None:
        """Count the answers of one sweep."""
        for question, good in zip(questions, right, strict=True):
            self._asked[question.kind] += 1
            self._right[question.kind] += bool(good)

    @property
    def num_questions(self) -> int:
        """Number of questions."""
        return sum(self._asked.values())

    @property
    def num_right(self) -> int:
        """Number of right answers."""
        return sum(self._right.values())

    @property
    def overall(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.num_right / max(1, self.num_questions)

    def share_right(self, *, choice: bool) -> float:
        """Return the share of right answers to multiple choice questions, or to the others."""
        kinds = [kind for kind in self._asked if kind.startswith('choice ') == choice]
        asked = sum(self._asked[kind] for kind in kinds)
        return sum(self._right[kind] for kind in kinds) / max(1, asked)

    def per_kind(self) -> dict[str, tuple[int, int]]:
        """Return kind to numbers of right answers and of questions, sorted by kind."""
        return {kind: (self._right[kind], self._asked[kind]) for kind in sorted(self._asked)}
