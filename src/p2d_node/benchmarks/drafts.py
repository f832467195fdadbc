"""What drafts save: a model with random weights at a given agreement, and whole drives.

Plain decoding and each source of drafts are measured in turns, in one run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
import random
import statistics
from typing import Any, TypeVar

from p2d_node.benchmarks.measuring import check_device, DTYPES, time_ms
from p2d_node.benchmarks.plans import DraftBenchmark
from p2d_node.benchmarks.random_model import build_model
from p2d_node.language_model.conversation import (
    Conversation,
    DraftSettings,
    Limits,
    TextAnswer,
)
from p2d_node.language_model.decode_loop import DecodeLoop
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import DrivingAnswer, FrameSet, NUSCENES_CAMERAS, PassCounts
from p2d_node.token_selection import num_keep_from_retention
import torch

QUESTION = 'What should the ego vehicle do next, and why?'
T = TypeVar('T')

SOURCES = ('none', 'last_sweep', 'prompt_lookup')
RETENTION_RATIO = 0.1
PLAIN = DraftSettings()

DRIVE_QUESTIONS = (
    'What should the ego vehicle do next, and why?',
    'What are the important objects in the current scene?',
    'What is the closest object in front of the ego vehicle?',
    'Is it safe to change to the left lane?',
    'What color is the traffic light?',
    'How many pedestrians are there in the front view?',
)


@dataclass(slots=True)
class _Samples:
    """The measurements of one source; times in milliseconds."""

    answer_ms: list[float] = field(default_factory=list)
    num_answers: int = 0
    num_tokens: int = 0
    num_other: int = 0
    passes: PassCounts = field(default_factory=PassCounts)

    def add(self, num_tokens: int, passes: PassCounts, is_same: bool) -> None:
        """Add an answer; `is_same` tells whether it is that of plain decoding."""
        self.num_answers += 1
        self.num_tokens += num_tokens
        self.num_other += not is_same
        self.passes += passes

    def to_row(self) -> dict[str, Any]:
        passes = self.passes
        return {
            'answer_ms': statistics.median(self.answer_ms),
            'num_answers': self.num_answers,
            'tokens_per_answer': self.num_tokens / self.num_answers,
            'passes_per_answer': passes.num_passes / self.num_answers,
            'later_passes_per_answer': passes.num_passes / self.num_answers - 1.0,
            'tokens_per_pass': self.num_tokens / passes.num_passes,
            'accepted_share': passes.num_accepted / passes.num_drafted
            if passes.num_drafted
            else None,
            'other_answers': self.num_other,
        }


class RandomModel:
    """A model with random weights that answers one question about one sweep again and again."""

    def __init__(self, plan: DraftBenchmark, dtype: torch.dtype, *, packed: bool) -> None:
        """Build the model and prefill the views.

        Args:
            plan: Sizes and device.
            dtype: Of the weights.
            packed: Whether linear layers are packed for the CPU, as those of a checkpoint are.
        """
        check_device(plan.device)
        self._device = torch.device(plan.device)
        shape, num_cameras = plan.shape, len(NUSCENES_CAMERAS)
        self._family = build_model(
            shape, device=self._device, dtype=dtype, packed=packed, decisive=True
        )
        self._family.end_token_ids = ()
        self._talk = Conversation(
            self._family,
            model_name=shape.name,
            cameras=NUSCENES_CAMERAS,
            num_visual_tokens=num_cameras * shape.num_tokens,
        )
        self.drafter = self._talk.drafter
        generator = torch.Generator().manual_seed(0)
        size = (num_cameras, shape.num_tokens, shape.text['hidden_size'])
        tokens = torch.randn(size, generator=generator).to(self._device, dtype)
        kept = num_keep_from_retention(shape.num_tokens, RETENTION_RATIO)
        keep = [torch.arange(kept, device=self._device)] * num_cameras
        paused = self._talk.begin((QUESTION,), NUSCENES_CAMERAS, tokens, 0)
        self._views = self._talk.resume(paused, keep)
        (self._batch,) = self._views.batches(0, 1, 1)

    def answer(self, length: int, drafting: DraftSettings) -> tuple[TextAnswer, float]:
        """Return the answer, and the time from the prefilled views to its end, ms."""

        def work() -> TextAnswer:
            asked = self._talk.ask(
                self._views, self._batch, max_new_tokens=length, drafting=drafting
            )
            (answer,) = self._talk.generate(asked, Limits(max_new_tokens=length))
            return answer

        return _timed(self._device, work)

    def begin_decode_loop(self, num_tokens: int) -> DecodeLoop:
        """Return a loop with capacity for `num_tokens`, after the views and the question."""
        asked = self._talk.ask(self._views, self._batch, max_new_tokens=num_tokens)
        loop = self._family.decoder.begin_decode_loop(asked.prompts, self._family.embed)
        assert loop is not None
        return loop


def _timed(device: torch.device, work: Callable[[], T]) -> tuple[T, float]:
    """Return the result of `work` and its duration, ms.

    On a CPU that is processor time, which other programs hardly change.
    """
    wall_ms, cpu_ms, result = time_ms(device, work)
    return result, wall_ms if device.type == 'cuda' else cpu_ms


def run_random_model(plan: DraftBenchmark) -> Iterator[dict[str, Any]]:
    """Yield a row per length of the answer, agreement and source.

    The baseline is plain decoding in float32 whose weights are not packed.
    """
    baseline = RandomModel(plan, torch.float32, packed=False)
    model = RandomModel(plan, DTYPES[plan.dtype], packed=True)
    for length in plan.answer_lengths:
        model.answer(length, PLAIN)
        plain = model.drafter.last_answer(QUESTION)
        for agreement in plan.agreements:
            samples = {source: _Samples() for source in SOURCES[:2]}
            baseline_ms = []
            model.drafter.forget()
            for turn in range(plan.warm_up + plan.repeats):
                draft = _disagree(plain, agreement, plan, seed=turn)
                for source, sample in samples.items():
                    model.drafter.end(QUESTION, draft)
                    drafting = DraftSettings(source=source, max_tokens=plan.max_draft_tokens)
                    answer, answer_ms = model.answer(length, drafting)
                    if turn >= plan.warm_up:
                        same = model.drafter.last_answer(QUESTION) == plain
                        sample.add(answer.num_tokens, answer.passes, same)
                        sample.answer_ms.append(answer_ms)
                baseline_ms.append(baseline.answer(length, PLAIN)[1])
            case = {'answer_tokens': length, 'agreement': agreement}
            for row in _rows(samples, case):
                over_baseline = statistics.median(baseline_ms[plan.warm_up :]) / row['answer_ms']
                yield row | {'speedup_over_baseline': over_baseline}


def _disagree(
    tokens: Sequence[int], agreement: float, plan: DraftBenchmark, seed: int
) -> tuple[int, ...]:
    """Return the tokens, of which a share is replaced by others."""
    numbers, num_others = random.Random(seed), int(plan.shape.text['vocab_size']) - 1
    return tuple(
        token
        if numbers.random() < agreement
        else (token + 1 + numbers.randrange(num_others)) % (num_others + 1)
        for token in tokens
    )


def run_drives(
    pipeline: DrivingPipeline,
    drives: Mapping[str, Iterable[FrameSet]],
    max_draft_tokens: int,
) -> Iterator[dict[str, Any]]:
    """Answer about drives with each source of drafts; yield a row per source.

    Args:
        pipeline: A loaded model.
        drives: Name to sweeps, by time.
        max_draft_tokens: Largest number of drafted tokens per pass.
    """
    samples = {source: _Samples() for source in SOURCES}
    for sweeps in drives.values():
        encoded = [(sweep, pipeline.encode(sweep)) for sweep in sweeps]
        plain: list[list[DrivingAnswer]] = []
        for source, sample in samples.items():
            config = replace(pipeline.config, drafts=source, max_draft_tokens=max_draft_tokens)
            pipeline.reconfigure(config)
            for number, (sweep, tokens) in enumerate(encoded):
                work = partial(pipeline.answer_tokens, sweep, tokens, DRIVE_QUESTIONS)
                answers, answers_ms = _timed(pipeline.device, work)
                if source == 'none':
                    plain.append(answers)
                sample.answer_ms.append(answers_ms / len(answers))
                for answer, other in zip(answers, plain[number], strict=True):
                    same = answer.answer == other.answer
                    sample.add(answer.num_generated_tokens, answer.passes, same)
    yield from _rows(samples, {})


def _rows(samples: Mapping[str, _Samples], case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row per source, with its gain over plain decoding."""
    plain = samples['none'].to_row()
    for source, sample in samples.items():
        row = sample.to_row()
        yield {
            **case,
            'drafts': source,
            **row,
            'fewer_passes': plain['passes_per_answer'] / row['passes_per_answer'],
            'fewer_later_passes': _ratio(
                plain['later_passes_per_answer'], row['later_passes_per_answer']
            ),
            'speedup': plain['answer_ms'] / row['answer_ms'],
        }


def _ratio(plain: float, drafted: float) -> float | None:
    """Return how many times fewer; None where none is left."""
    return plain / drafted if drafted else None
