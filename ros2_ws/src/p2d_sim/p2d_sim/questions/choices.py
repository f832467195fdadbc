"""A question with options comes in; the same as a multiple choice question goes out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from p2d_sim.questions.question import Question

LETTERS = ('A', 'B', 'C', 'D')


def offer_choices(question: Question, rng: np.random.Generator) -> Question:
    """Turn a question into multiple choice; every letter is right equally often."""
    wrong = [option for option in question.options if option != question.answer]
    wrong = [wrong[i] for i in rng.permutation(len(wrong))[: len(LETTERS) - 1]]
    place = int(rng.integers(len(wrong) + 1))
    options = [*wrong[:place], question.answer, *wrong[place:]]
    listed = ' '.join(f'{letter}. {text}' for letter, text in zip(LETTERS, options, strict=False))
    return replace(
        question,
        kind=f'choice {question.kind}',
        tag=0,
        text=f'{question.text} Select the correct answer: {listed}',
        answer=LETTERS[place],
        content=question.answer,
    )
