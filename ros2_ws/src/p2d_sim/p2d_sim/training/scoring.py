"""Which questions the model answers right, all questions of a sweep at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from p2d_sim.questions import Question
from p2d_sim.training.samples import IGNORED


def right_answers(logits: Tensor, batch: dict[str, Tensor], num_questions: int) -> Tensor:
    """Tell which answers greedy decoding would give word for word.

    Greedy decoding gives an answer exactly if at each of its tokens, the end token included, the
    most probable next token after the tokens before is the right one.

    Args:
        logits: Float [1, tokens, vocabulary] over a packed row with its answers.
        batch: The row, [1, ...].
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
        """All questions."""
        return sum(self._asked.values())

    @property
    def num_right(self) -> int:
        """All right answers."""
        return sum(self._right.values())

    @property
    def overall(self) -> float:
        """Part of all answers that are right."""
        return self.num_right / max(1, self.num_questions)

    def part_right(self, *, choice: bool) -> float:
        """Part that is right of the multiple choice questions, or of the others."""
        kinds = [kind for kind in self._asked if kind.startswith('choice ') == choice]
        asked = sum(self._asked[kind] for kind in kinds)
        return sum(self._right[kind] for kind in kinds) / max(1, asked)

    def per_kind(self) -> dict[str, tuple[int, int]]:
        """Kind to right answers and questions."""
        return {kind: (self._right[kind], self._asked[kind]) for kind in sorted(self._asked)}
