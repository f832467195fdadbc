"""Sums per keyframe from which the scores of any sample of keyframes follow.

BLEU is a quotient of counts, and ROUGE_L and CIDEr are means, so thousands of resamples are cheap.
CIDEr weighs words by their frequency in the references, here always in those of all keyframes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from p2d_node.evaluation.language_metrics import compare_texts, NUM_GRAMS, TOKENIZE
from p2d_node.tuning.answers import Answered, is_multiple_choice, is_right

Floats = npt.NDArray[np.float64]

TINY, SMALL = 1e-15, 1e-9
"""The constants with which the COCO evaluation's BLEU avoids division by zero."""

LENGTHS, GUESSES, CORRECT = slice(0, 2), slice(2, 6), slice(6, 10)
ROUGE, CIDER, NUM_FREE, NUM_LETTERS, RIGHT_LETTERS, NUM_RIGHT, NUM_ALL = range(10, 17)
NUM_COLUMNS = 17
"""Columns of a table: lengths of answers and references; n-grams of answers, and the correct ones;
then sums of scores and counts of answers."""


MOST_TEXTS = 100_000
"""Capacity of the cache of tokenised texts; a full cache is cleared."""


@dataclass(frozen=True, slots=True)
class CorpusScores:
    """Scores of all keyframes; None if no question has the score.

    Attributes:
        language: As in `SampleScores`.
        accuracy: As in `SampleScores`.
    """

    language: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class SampleScores:
    """Scores of samples of keyframes; each a float64 array [samples].

    Attributes:
        language: Mean of BLEU-1..4, ROUGE_L and CIDEr/10, over free texts.
        accuracy: Share of one-letter answers that are right.
        exact: Share of all answers that are right word for word.
    """

    language: Floats
    accuracy: Floats
    exact: Floats


class CachedTokenizer:
    """A tokenizer with a cache: texts repeat in every trial. Use it from one thread."""

    def __init__(self, tokenizer: str) -> None:
        """Use the tokenizer `treebank` or `ptb`."""
        self._tokenize = TOKENIZE[tokenizer]
        self._known: dict[str, str] = {}

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Return each text's tokens, with spaces between them."""
        if len(self._known) > MOST_TEXTS:
            self._known.clear()
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if new:
            self._known |= dict(zip(new, self._tokenize(new), strict=True))
        return [self._known[text] for text in texts]


@cache
def cached_tokenizer(tokenizer: str) -> CachedTokenizer:
    """Return the tokenizer of this process."""
    return CachedTokenizer(tokenizer)


def make_table(answers: Sequence[Sequence[Answered]], tokenizer: str) -> Floats:
    """Return the sums per keyframe, [keyframes, columns].

    Args:
        answers: Per keyframe its questions and their answers.
        tokenizer: `treebank` or `ptb`.
    """
    table = np.zeros((len(answers), NUM_COLUMNS))
    free: list[tuple[int, Answered]] = []
    for row, answered in enumerate(answers):
        for question, answer in answered:
            right = is_right(question, answer)
            table[row, NUM_ALL] += 1
            table[row, NUM_RIGHT] += right
            if is_multiple_choice(question):
                table[row, NUM_LETTERS] += 1
                table[row, RIGHT_LETTERS] += right
            else:
                free.append((row, (question, answer)))
    _add_language(table, free, tokenizer)
    return table


def _add_language(table: Floats, free: Sequence[tuple[int, Answered]], tokenizer: str) -> None:
    if not free:
        return
    tokens = cached_tokenizer(tokenizer)
    predicted = tokens([answer for _, (_, answer) in free])
    expected = tokens([str(question.reference) for _, (question, _) in free])
    compared = compare_texts(predicted, expected)
    for index, (row, _) in enumerate(free):
        counts: Any = compared.bleu.ctest[index]
        table[row, LENGTHS] += (counts['testlen'], counts['reflen'][0])
        table[row, GUESSES] += counts['guess']
        table[row, CORRECT] += counts['correct']
        table[row, ROUGE] += compared.rouge_l[index]
        table[row, CIDER] += compared.cider[index]
        table[row, NUM_FREE] += 1


def score_samples(table: Floats, times: Floats) -> SampleScores:
    """Score samples of keyframes.

    Args:
        table: From `make_table`.
        times: How often each keyframe counts, [samples, keyframes].
    """
    sums = times @ table
    correct, guesses = sums[:, CORRECT] + TINY, sums[:, GUESSES] + SMALL
    roots = 1.0 / np.arange(1, NUM_GRAMS + 1)
    bleu = np.cumprod(correct / guesses, axis=1) ** roots
    length = (sums[:, 0] + TINY) / (sums[:, 1] + SMALL)
    bleu *= np.where(length < 1.0, np.exp(1.0 - 1.0 / length), 1.0)[:, None]
    num_free = np.maximum(sums[:, NUM_FREE], 1.0)
    language = (
        bleu.mean(axis=1) + sums[:, ROUGE] / num_free + sums[:, CIDER] / num_free / 10.0
    ) / 3.0
    return SampleScores(
        language=np.where(sums[:, NUM_FREE] > 0, language, 0.0),
        accuracy=sums[:, RIGHT_LETTERS] / np.maximum(sums[:, NUM_LETTERS], 1.0),
        exact=sums[:, NUM_RIGHT] / np.maximum(sums[:, NUM_ALL], 1.0),
    )


def score_corpus(table: Floats) -> CorpusScores:
    """Score all keyframes of a table."""
    parts = score_samples(table, np.ones((1, len(table))))
    return CorpusScores(
        language=float(parts.language[0]) if table[:, NUM_FREE].any() else None,
        accuracy=float(parts.accuracy[0]) if table[:, NUM_LETTERS].any() else None,
    )
