"""What answering the questions of a sweep together saves, beside answering each for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
import statistics
from typing import Any

from p2d_node.checkpoints.untrained import WORDS
from p2d_node.errors import ConfigError
from p2d_node.evaluation.model_shape import ModelShape, prefill, prefill_views, SCALED
from p2d_node.evaluation.prefill_benchmark import Bench, generate, NUM_VIEWS, PrefillBenchmark
from p2d_node.evaluation.selection_benchmark import describe_machine
from p2d_node.language_model.prompt import Prompt, split_opening
from p2d_node.records import NUSCENES_CAMERAS

Answers = list[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class QuestionBenchmark:
    """What is measured."""

    shape: ModelShape = SCALED
    num_questions: int = 20
    retention_ratio: float = 0.1
    prune_layer: int = 0
    answer_tokens: int = 16
    device: str = 'cpu'
    dtype: str = 'float32'
    warm_up: int = 1
    repeats: int = 3

    def __post_init__(self) -> None:
        """Check the values."""
        if self.num_questions < 2:
            raise ConfigError(f'questions: got {self.num_questions}, allowed: 2 or more')
        self.model_plan()

    @property
    def num_steps(self) -> int:
        """How many times something is measured."""
        return 3 * (self.warm_up + self.repeats)

    def model_plan(self) -> PrefillBenchmark:
        """Return the model's part of the plan."""
        return PrefillBenchmark(
            shape=self.shape,
            retention_ratios=(self.retention_ratio,),
            prune_layers=(self.prune_layer,),
            answer_tokens=self.answer_tokens,
            device=self.device,
            dtype=self.dtype,
            warm_up=self.warm_up,
            repeats=self.repeats,
        )


class _Contenders:
    """Three ways to the same answers, from visual tokens to the last token; no encoder."""

    def __init__(self, plan: QuestionBenchmark) -> None:
        self._plan = plan
        self.bench = Bench(plan.model_plan())
        family = self.bench.family
        self._prompts = [family.build_prompt(q, NUSCENES_CAMERAS) for q in _questions(plan)]

    def separately(self) -> Answers:
        """Answer every question as if it were alone: the views are prefilled for each."""
        return [answer for prompt in self._prompts for answer in self._alone(prompt)]

    def _alone(self, prompt: Prompt) -> Answers:
        family, plan = self.bench.family, self._plan
        select = self.bench.selector(plan.retention_ratio)
        tokens = self.bench.visual_tokens
        asked, logits = prefill(
            family, prompt, tokens, select, plan.prune_layer, max_new_tokens=plan.answer_tokens
        )
        return generate(family, asked, logits, plan.answer_tokens)

    def one_by_one(self) -> Answers:
        """Prefill the views once, then answer question after question."""
        return self._over_one_prefix(batch=1)

    def together(self) -> Answers:
        """Prefill the views once and answer all questions as a batch, as the pipeline does."""
        return self._over_one_prefix(batch=len(self._prompts))

    def _over_one_prefix(self, batch: int) -> Answers:
        family, plan = self.bench.family, self._plan
        opening, endings = split_opening([prompt.suffix for prompt in self._prompts])
        inputs = family.embed_prefix(self._prompts[0], self.bench.visual_tokens)
        select = self.bench.selector(plan.retention_ratio)
        prefix = prefill_views(family, inputs, select, plan.prune_layer)
        inputs = family.embed_text(opening, inputs.end_position)
        prefix, _ = family.decoder.extend(prefix, [inputs])
        answers: Answers = []
        for start in range(0, len(endings), batch):
            texts = [
                family.embed_text(ids, inputs.end_position)
                for ids in endings[start : start + batch]
            ]
            asked, logits = family.decoder.extend(prefix, texts, max_new_tokens=plan.answer_tokens)
            answers += generate(family, asked, logits, plan.answer_tokens)
        return answers


def _questions(plan: QuestionBenchmark) -> Sequence[str]:
    """Make different questions of 5 to 15 words."""
    words = WORDS.split()
    return [
        ' '.join(words[(7 * number + 3 * i) % len(words)] for i in range(5 + number % 11))
        for number in range(plan.num_questions)
    ]


def run_question_benchmark(plan: QuestionBenchmark) -> Iterator[str | dict[str, Any]]:
    """Measure the three ways in turns and compare their answers.

    Yields:
        What has just been measured; at last the report, ready for JSON.
    """
    contenders = _Contenders(plan)
    ways: dict[str, Callable[[], Answers]] = {
        'separately': contenders.separately,
        'one_by_one': contenders.one_by_one,
        'together': contenders.together,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    cpu_times: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, Answers] = {}
    for turn in range(plan.warm_up + plan.repeats):
        for name, way in ways.items():
            duration_ms, cpu_ms, answers[name] = contenders.bench.time_ms(way)
            if turn >= plan.warm_up:
                times[name].append(duration_ms)
                cpu_times[name].append(cpu_ms)
            yield f'round {turn}: {name.replace("_", " ")}'
    medians = {name: statistics.median(values) for name, values in times.items()}
    yield {
        'benchmark': 'all questions about one sweep, milliseconds; without the vision encoder',
        **describe_machine(plan.device),
        'shape': plan.shape.name,
        'num_views': NUM_VIEWS,
        'tokens_per_view': plan.shape.num_tokens,
        'retention_ratio': plan.retention_ratio,
        'prune_layer': plan.prune_layer,
        'num_questions': plan.num_questions,
        'answer_tokens': plan.answer_tokens,
        'dtype': plan.dtype,
        'warm_up': plan.warm_up,
        'repeats': plan.repeats,
        'median_ms': medians,
        'median_cpu_ms': {name: statistics.median(values) for name, values in cpu_times.items()},
        'share_of_separately': medians['together'] / medians['separately'],
        'share_of_one_by_one': medians['together'] / medians['one_by_one'],
        'same_answers': answers['separately'] == answers['one_by_one'] == answers['together'],
        'different_answers': len(set(answers['together'])),
    }
