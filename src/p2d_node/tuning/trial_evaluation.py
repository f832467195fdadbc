"""Retention ratios come in; the answers to all questions go out, block by block with their score.

Keyframes are answered in one fixed order in which scenes are mixed, so that running scores of two
trials compare, and say something early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import hashlib
import math

from p2d_node.evaluation.answering import Keyframe
from p2d_node.pipeline import DrivingPipeline
from p2d_node.tuning.answers import Answered
from p2d_node.tuning.objective import Objective, Score
from p2d_node.tuning.search_space import SearchSpace
from p2d_node.tuning.seen_keyframes import SeenKeyframes

NUM_BLOCKS = 8
"""After each a trial that looks hopeless may end: often enough to save time, and late enough that
a running score is one of more than a few questions."""


@dataclass(frozen=True, slots=True)
class RunningScore:
    """How a trial stands.

    Attributes:
        num_keyframes: Keyframes answered so far.
        is_last: Whether these are all.
        score: Over them.
    """

    num_keyframes: int
    is_last: bool
    score: Score


def mix_keyframes(keyframes: Sequence[Keyframe], digests: Mapping[str, str]) -> list[Keyframe]:
    """Return the keyframes in an order that is random, and the same on every machine."""

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
        seen: SeenKeyframes,
        objective: Objective,
        space: SearchSpace,
        *,
        keyframes: Sequence[Keyframe],
        digests: Mapping[str, str],
        must_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Answer about `keyframes`, which `seen` has seen, until `must_stop` cuts it short."""
        self._pipeline = pipeline
        self._seen = seen
        self._objective = objective
        self._space = space
        self.keyframes = mix_keyframes(keyframes, digests)
        self._digests = digests
        self._must_stop = must_stop

    def run(
        self, ratios: Mapping[str, float], on_keyframe: Callable[[], None] = lambda: None
    ) -> Iterator[RunningScore]:
        """Answer everything with these ratios; yields the score so far after every block."""
        answered: list[Answered] = []
        block = math.ceil(len(self.keyframes) / NUM_BLOCKS)
        for number, keyframe in enumerate(self.keyframes, start=1):
            answered += self.answer(keyframe, ratios)
            on_keyframe()
            is_last = number == len(self.keyframes)
            if is_last or number % block == 0:
                yield RunningScore(number, is_last, self._objective.score(answered, ratios))

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
        seen = self._seen.load(keyframe, self._digests[keyframe.name])
        kept = seen.keep_indices(
            list(self._space.tokens_kept(ratios).values()),
            [ratios[camera] for camera in self._space.cameras],
            adaptive=pipeline.config.allocation == 'adaptive',
        )
        answers = pipeline.answer_tokens(
            seen.frame_set,
            seen.visual_tokens.to(pipeline.device),
            [question.question for question in keyframe.questions],
            keep_indices=None if kept is None else [k.to(pipeline.device) for k in kept],
            must_stop=self._must_stop,
        )
        texts = [answer.answer for answer in answers]
        return list(zip(keyframe.questions, texts, strict=True))
