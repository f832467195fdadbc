"""One sweep to ask about: its ground truth, and the random numbers that choose the questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from p2d_sim.ground_truth import Sighting, Truth, ViewTruth
from p2d_sim.questions.question import Question, VIEW_NAMES

Item = TypeVar('Item')
ViewSighting = tuple[int, Sighting]
"""Index of a view, and an actor in that view."""


class AskedSweep:
    """The ground truth of a sweep, with lookups that several kinds of questions share.

    Attributes:
        truth: The ground truth.
        rng: Chooses answers and objects.
        unique: Clear sightings whose kind occurs only once in their view.
    """

    def __init__(self, truth: Truth, rng: np.random.Generator) -> None:
        self.truth = truth
        self.rng = rng
        self.unique: list[ViewSighting] = [
            (view, sighting)
            for view, seen in enumerate(truth.views)
            for sighting in seen.sightings
            if sighting.clear and len(sightings_of(seen, sighting.actor.kind)) == 1
        ]

    def choose(self, items: Sequence[Item]) -> Item:
        """Return one of `items`, each with the same probability."""
        return items[int(self.rng.integers(len(items)))]

    def ask_about_one(
        self,
        sightings: Sequence[ViewSighting],
        answer_of: Callable[[Sighting], str | None],
        *,
        text: str,
        **fields: Any,
    ) -> Question | None:
        """Ask about one of `sightings`; None if no answer is known for any of them.

        The answer is chosen first, so that all answers are about equally frequent, and then a
        sighting with that answer.

        Args:
            sightings: What the question may be about.
            answer_of: Returns the answer for a sighting, None if that is ambiguous.
            text: The question; `{kind}` and `{view}` stand for the sighting's.
            fields: Further fields of the question.
        """
        by_answer: dict[str, list[ViewSighting]] = {}
        for view, sighting in sightings:
            answer = answer_of(sighting)
            if answer is not None:
                by_answer.setdefault(answer, []).append((view, sighting))
        if not by_answer:
            return None
        answer = self.choose(list(by_answer))
        view, sighting = self.choose(by_answer[answer])
        return Question(
            text=text.format(kind=sighting.actor.kind, view=VIEW_NAMES[view]),
            answer=answer,
            cameras=(view,),
            targets=(target_of(view, sighting),),
            **fields,
        )


def sightings_of(view: ViewTruth, kind: str) -> list[Sighting]:
    """Return all actors of one kind in a view, clear or not."""
    return [sighting for sighting in view.sightings if sighting.actor.kind == kind]


def target_of(view: int, sighting: Sighting) -> tuple[int, int]:
    """Return what a question about `sighting` has in `Question.targets`."""
    return view, sighting.actor.index + 1
