"""What drafts save: a model with random weights at a given agreement, and whole drives.

Plain decoding and each source of drafts are measured in turns, in one run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
import random
import statistics
import time
from typing import Any

from p2d_node.benchmarks.measuring import check_device, DTYPES, synchronize
from p2d_node.benchmarks.plans import DraftBenchmark
from p2d_node.benchmarks.random_model import build_model
from p2d_node.language_model.conversation import (
    Conversation,
    DraftSettings,
    Limits,
    SharedPrefix,
    TextAnswer,
)
from p2d_node.language_model.decode_loop import DecodeLoop
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import DrivingAnswer, FrameSet, NUSCENES_CAMERAS, PassCounts
from p2d_node.token_selection import num_keep_from_retention
import torch
from torch import Tensor

QUESTION = 'What should the ego vehicle do next, and why?'
SOURCES = ('none', 'last_sweep', 'prompt_lookup')
RETENTION_RATIO = 0.1

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

    def add(self, answer: TextAnswer | DrivingAnswer, num_tokens: int, plain: str) -> None:
        text = answer.text if isinstance(answer, TextAnswer) else answer.answer
        self.num_answers += 1
        self.num_tokens += num_tokens
        self.num_other += text != plain
        self.passes += answer.passes

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


class RandomModelDrafts:
    """A model with random weights that answers one question again and again."""

    def __init__(self, plan: DraftBenchmark) -> None:
        """Build the model and prefill the views."""
        check_device(plan.device)
        self._plan = plan
        self._device = torch.device(plan.device)
        shape = plan.shape
        family = build_model(shape, device=self._device, dtype=DTYPES[plan.dtype])
        family.end_token_ids = ()
        self._family = family
        num_tokens = shape.num_tokens
        self._talk = Conversation(
            family,
            model_name=shape.name,
            cameras=NUSCENES_CAMERAS,
            num_visual_tokens=len(NUSCENES_CAMERAS) * num_tokens,
        )
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(
            (len(NUSCENES_CAMERAS), num_tokens, shape.text['hidden_size']), generator=generator
        )
        self._tokens = tokens.to(self._device, DTYPES[plan.dtype])
        self._vocabulary = int(shape.text['vocab_size'])

    def _prefill(self) -> SharedPrefix:
        count = num_keep_from_retention(self._tokens.shape[1], RETENTION_RATIO)
        keep = [torch.arange(count, device=self._device)] * len(NUSCENES_CAMERAS)
        paused = self._talk.begin((QUESTION,), NUSCENES_CAMERAS, self._tokens, 0)
        return self._talk.resume(paused, keep)

    def begin_decode_loop(self, num_tokens: int) -> DecodeLoop:
        """Return a loop with capacity for `num_tokens`, after the views and the question."""
        shared = self._prefill()
        (batch,) = shared.batches(0, 1, 1)
        asked = self._talk.ask(shared, batch, max_new_tokens=num_tokens)
        loop = self._family.decoder.begin_decode_loop(asked.prompts, self._family.embed)
        assert loop is not None
        return loop

    def run(self) -> Iterator[dict[str, Any]]:
        """Yield a row per length of the answer, agreement and source."""
        plan, shared = self._plan, self._prefill()
        for length in plan.answer_lengths:
            plain, _ = self._answer(shared, length, 'none')
            last = self._talk.drafter.last_answer(QUESTION)
            for agreement in plan.agreements:
                samples = {source: _Samples() for source in SOURCES[:2]}
                self._talk.drafter.forget()
                for turn in range(plan.warm_up + plan.repeats):
                    draft = self._disagree(last, agreement, seed=turn)
                    for source, sample in samples.items():
                        self._talk.drafter.end(QUESTION, draft)
                        answer, answer_ms = self._answer(shared, length, source)
                        if turn >= plan.warm_up:
                            sample.add(answer, answer.num_tokens, plain.text)
                            sample.answer_ms.append(answer_ms)
                yield from _rows(samples, {'answer_tokens': length, 'agreement': agreement})

    def _answer(self, shared: SharedPrefix, length: int, source: str) -> tuple[TextAnswer, float]:
        """Return the answer, and the time from the prefilled views to its end, ms."""
        settings = DraftSettings(source=source, max_tokens=self._plan.max_draft_tokens)
        (batch,) = shared.batches(0, 1, 1)
        synchronize(self._device)
        # On a CPU processor time: other programs hardly change it.
        clock = time.perf_counter_ns if self._device.type == 'cuda' else time.process_time_ns
        started_ns = clock()
        asked = self._talk.ask(shared, batch, max_new_tokens=length, drafting=settings)
        (answer,) = self._talk.generate(asked, Limits(max_new_tokens=length))
        synchronize(self._device)
        return answer, (clock() - started_ns) / 1e6

    def _disagree(self, tokens: Sequence[int], agreement: float, seed: int) -> tuple[int, ...]:
        """Return the tokens, of which a share is replaced by others."""
        numbers = random.Random(seed)
        return tuple(
            token
            if numbers.random() < agreement
            else (token + 1 + numbers.randrange(self._vocabulary - 1)) % self._vocabulary
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
                answers = _answer_sweep(pipeline, sweep, tokens)
                if source == 'none':
                    plain.append(answers)
                times = answers[0].times
                sample.answer_ms.append((times.prefill_ms + times.generate_ms) / len(answers))
                for answer, other in zip(answers, plain[number], strict=True):
                    sample.add(answer, answer.num_generated_tokens, other.answer)
    yield from _rows(samples, {})


def _answer_sweep(
    pipeline: DrivingPipeline, sweep: FrameSet, tokens: Tensor
) -> list[DrivingAnswer]:
    return pipeline.answer_tokens(sweep, tokens, DRIVE_QUESTIONS)


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
