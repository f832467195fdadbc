"""Answers all questions with given retention ratios, block by block with the score so far.

Keyframes are answered in one fixed, shuffled order, so that the running scores of two trials can
be compared early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import hashlib
import math

from p2d_node.evaluation.answering import Keyframe
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import Cut
from p2d_node.tuning.answers import Answered
from p2d_node.tuning.keyframe_cache import KeyframeCache
from p2d_node.tuning.objective import Objective, Score
from p2d_node.tuning.search_space import SearchSpace

NUM_BLOCKS = 8
"""Number of running scores of a trial; after each the trial may be pruned."""


@dataclass(frozen=True, slots=True)
class RunningScore:
    """The score of a trial so far.

    Attributes:
        num_keyframes: Keyframes answered so far.
        is_last: Whether these are all keyframes.
        score: Over their questions.
        num_cut: How many of the answers were cut at `max_new_tokens`.
    """

    num_keyframes: int
    is_last: bool
    score: Score
    num_cut: int


def mix_keyframes(keyframes: Sequence[Keyframe], digests: Mapping[str, str]) -> list[Keyframe]:
    """Return the keyframes in a shuffled order that is the same on every machine."""

    def key(keyframe: Keyframe) -> bytes:
        return hashlib.sha256(f'{keyframe.name} {digests[keyframe.name]}'.encode()).digest()

    return sorted(keyframes, key=key)


class TrialEvaluator:
    """Answers the questions of a set of keyframes with given ratios. Use it from one thread.

    Attributes:
        keyframes: In the order in which they are answered.
    """

    def __init__(
        self,
        pipeline: DrivingPipeline,
        cache: KeyframeCache,
        objective: Objective,
        space: SearchSpace,
        *,
        keyframes: Sequence[Keyframe],
        digests: Mapping[str, str],
        must_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Answer the questions of `keyframes`, which are in `cache`.

        If `must_stop` returns true, answers are cut short.
        """
        self._pipeline = pipeline
        self._cache = cache
        self._objective = objective
        self._space = space
        self.keyframes = mix_keyframes(keyframes, digests)
        self._digests = digests
        self._must_stop = must_stop
        self._num_cut = 0

    def run(
        self, ratios: Mapping[str, float], on_keyframe: Callable[[], None] = lambda: None
    ) -> Iterator[RunningScore]:
        """Answer all questions with these ratios; yield the score so far after every block."""
        answered: list[Answered] = []
        self._num_cut = 0
        block = math.ceil(len(self.keyframes) / NUM_BLOCKS)
        for number, keyframe in enumerate(self.keyframes, start=1):
            answered += self.answer(keyframe, ratios)
            on_keyframe()
            is_last = number == len(self.keyframes)
            if is_last or number % block == 0:
                score = self._objective.score(answered, ratios)
                yield RunningScore(number, is_last, score, self._num_cut)

    def answer_all(
        self, ratios: Mapping[str, float], on_keyframe: Callable[[], None] = lambda: None
    ) -> list[list[Answered]]:
        """Return the answers of every keyframe, in one order for all ratios."""
        answers = []
        for keyframe in self.keyframes:
            answers.append(self.answer(keyframe, ratios))
            on_keyframe()
        return answers

    def answer(self, keyframe: Keyframe, ratios: Mapping[str, float]) -> list[Answered]:
        """Answer the questions of one keyframe."""
        pipeline = self._pipeline
        pipeline.reconfigure(replace(pipeline.config, retention_ratio=dict(ratios)))
        encoded = self._cache.load(keyframe, self._digests[keyframe.name])
        kept = encoded.keep_indices(
            list(self._space.tokens_kept(ratios).values()),
            [ratios[camera] for camera in self._space.cameras],
            adaptive=pipeline.config.allocation == 'adaptive',
        )
        answers = pipeline.answer_tokens(
            encoded.frame_set,
            encoded.visual_tokens.to(pipeline.device),
            [question.question for question in keyframe.questions],
            keep_indices=None if kept is None else [k.to(pipeline.device) for k in kept],
            must_stop=self._must_stop,
        )
        self._num_cut += sum(answer.cut is Cut.LENGTH for answer in answers)
        texts = [answer.answer for answer in answers]
        return list(zip(keyframe.questions, texts, strict=True))
