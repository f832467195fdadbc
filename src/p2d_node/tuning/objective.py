"""The score that the search maximises.

Prune2Drive's objective: a weight for language, one for accuracy, and a penalty on the sum of the
ratios. Language is the mean of BLEU-1..4, ROUGE_L and CIDEr/10 over free texts; accuracy is the
share of one-letter answers that are right. The published script filters predictions and references
separately, which can pair an answer with another question's reference; here they are paired
by question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
import math
from typing import TypeVar

from p2d_node.errors import ConfigError
from p2d_node.evaluation.drivelm_questions import DriveLmQuestion
from p2d_node.tuning.answers import Answered, is_multiple_choice
from p2d_node.tuning.score_table import Floats, make_table, score_corpus

PUBLISHED_LANGUAGE_WEIGHT = 0.5
PUBLISHED_ACCURACY_WEIGHT = 0.5
PUBLISHED_RATIO_PENALTY = 0.03

T = TypeVar('T', float, Floats)


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a trial and its parts.

    Attributes:
        value: Value of the objective.
        language: 0 to about 1; None if no reference is a free text.
        accuracy: 0 to 1; None if no reference is a letter.
    """

    value: float
    language: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The objective of the search.

    Attributes:
        language_weight: Weight of the language score.
        accuracy_weight: Weight of the accuracy.
        ratio_penalty: Weight of the sum of all ratios, which is subtracted.
        tokenizer: `treebank` or `ptb`; every worker must use the same one.
    """

    language_weight: float = PUBLISHED_LANGUAGE_WEIGHT
    accuracy_weight: float = PUBLISHED_ACCURACY_WEIGHT
    ratio_penalty: float = PUBLISHED_RATIO_PENALTY
    tokenizer: str = 'treebank'

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ('language_weight', 'accuracy_weight', 'ratio_penalty'):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ConfigError(f'{name}: got {value:g}, allowed: 0 or more')
        if self.language_weight + self.accuracy_weight == 0.0:
            raise ConfigError('language_weight, accuracy_weight: got 0 for both')

    def check_questions(self, questions: Sequence[DriveLmQuestion], source: str) -> None:
        """Check, before the first trial, that the questions can be scored.

        Raises:
            ConfigError: A question has no answer, or no question has a weighted score.
        """
        bare = [q.id for q in questions if not str(q.reference or '').strip()]
        if bare:
            raise ConfigError(
                f'{source}: {len(bare)} of {len(questions)} questions have no answer, the first '
                f'is {bare[0]}; remove them, or name a file with answers'
            )
        num_letters = sum(map(is_multiple_choice, questions))
        if self.accuracy_weight and not num_letters:
            raise ConfigError(
                f'accuracy_weight: got {self.accuracy_weight:g}, but no question of {source} has '
                'a one-letter answer; allowed: 0'
            )
        if self.language_weight and num_letters == len(questions):
            raise ConfigError(
                f'{source}: every question has a one-letter answer, so there is no language; set '
                'language_weight to 0'
            )

    def score(self, answered: Iterable[Answered], ratios: Mapping[str, float]) -> Score:
        """Score the answers of a trial with these ratios."""
        parts = score_corpus(make_table([list(answered)], self.tokenizer))
        value = self.value(parts.language, parts.accuracy, ratios)
        return Score(value, parts.language, parts.accuracy)

    def value(
        self, language: float | None, accuracy: float | None, ratios: Mapping[str, float]
    ) -> float:
        """Return the score of these parts, as `Score` has them, with these ratios."""
        penalty = self.ratio_penalty * sum(ratios.values())
        return self.weigh(language or 0.0, accuracy or 0.0) - penalty

    def weigh(self, language: T, accuracy: T) -> T:
        """Return the weighted sum without the penalty."""
        return self.language_weight * language + self.accuracy_weight * accuracy
