"""All kinds of questions, and how often each of them is asked per sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from p2d_sim.ground_truth import Truth
from p2d_sim.questions import perception, planning, prediction
from p2d_sim.questions.choices import offer_choices
from p2d_sim.questions.question import Question
from p2d_sim.questions.sweep import AskedSweep

Ask = Callable[[AskedSweep], Question | None]
"""Returns a question about the sweep; None if the sweep has no clear answer."""

FREE_TRIES: Mapping[Ask, int] = {
    perception.ask_exist: 6,
    perception.ask_count: 3,
    perception.ask_colour: 4,
    perception.ask_category: 4,
    perception.ask_which_view: 3,
    perception.ask_where: 4,
    perception.ask_distance: 4,
    perception.ask_conditions: 1,
    perception.ask_light: 1,
    prediction.ask_status: 4,
    prediction.ask_path: 2,
    planning.ask_action: 1,
    planning.ask_why: 1,
    planning.ask_important: 1,
    planning.ask_behaviour: 1,
    planning.ask_lane: 3,
}
"""How often each kind is tried per sweep, for an answer in words."""

CHOICE_TRIES: Mapping[Ask, int] = {
    perception.ask_colour: 3,
    perception.ask_category: 3,
    prediction.ask_status: 2,
    perception.ask_which_view: 2,
    perception.ask_light: 1,
    perception.ask_count: 1,
    planning.ask_danger: 1,
}
"""How often each kind is tried per sweep as multiple choice."""


def ask_all(truth: Truth, rng: np.random.Generator) -> list[Question]:
    """Return questions of all kinds about one sweep, shuffled; no question comes twice.

    Each kind chooses the answer first and then an object that has it. So no answer is much more
    frequent than the others of its kind, and the words of a question do not tell its answer.

    Args:
        truth: The ground truth of the sweep.
        rng: Chooses the questions; the same state gives the same questions.
    """
    sweep = AskedSweep(truth, rng)
    free: dict[str, Question] = {}
    for question in _try_all(sweep, FREE_TRIES):
        free.setdefault(question.text, question)
    choices: dict[str, Question] = {}
    for question in _try_all(sweep, CHOICE_TRIES):
        choice = offer_choices(question, rng)
        choices.setdefault(question.text, choice)
    questions = [*free.values(), *choices.values()]
    return [questions[i] for i in rng.permutation(len(questions))]


def ask_with_seed(truth: Truth, seed: int) -> list[Question]:
    """Return the questions that `seed` chooses, see `ask_all`."""
    return ask_all(truth, np.random.default_rng((9, seed)))


def _try_all(sweep: AskedSweep, tries: Mapping[Ask, int]) -> Iterator[Question]:
    for ask, number in tries.items():
        for _ in range(number):
            question = ask(sweep)
            if question is not None:
                yield question
