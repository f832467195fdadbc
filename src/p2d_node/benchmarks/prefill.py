"""Times of prefill and decoding per retention ratio, beside the unpruned model.

A plan comes in, a report of plain numbers goes out, ready for JSON. Weights and visual tokens are
random, as times do not depend on their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
import statistics
from typing import Any, TypeVar

from p2d_node.benchmarks.measuring import (
    check_device,
    describe_machine,
    DTYPES,
    percentile,
    time_ms,
)
from p2d_node.benchmarks.model_shape import DRIVEMM, ModelShape
from p2d_node.benchmarks.plans import PrefillBenchmark
from p2d_node.benchmarks.random_model import (
    build_model,
    FlopCount,
    make_prompt,
    prefill,
    SelectTokens,
)
from p2d_node.language_model.families.llava_onevision import LlavaOnevision
from p2d_node.language_model.generate import generate_greedy
from p2d_node.language_model.prefix import Prefix
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.token_selection import make_selector, num_keep_from_retention
import torch
from torch import Tensor

T = TypeVar('T')

NUM_VIEWS = len(NUSCENES_CAMERAS)
BASELINE = 'unpruned, in the same run, measured in turns'


@dataclass(frozen=True, kw_only=True)
class PrefillTiming:
    """One row. Times are medians in milliseconds.

    Attributes:
        retention_ratio: Kept/total.
        prune_layer: Decoder layer before which tokens are dropped.
        num_keep: Kept tokens per view.
        prefill_ms: From visual tokens to the first logits, token selection included.
        prefill_p95_ms: Its 95th percentile.
        prefill_cpu_ms: Processor time of the prefill, which other programs on the machine hardly
            change; None on a GPU.
        prefill_speedup: Unpruned prefill over this one, of the same run; None without it.
        decode_ms: Per further token.
        growing_decode_ms: The same, as a baseline, with a cache that grows by every token.
        sweep_ms: From visual tokens to the last answer token.
        sweep_with_encoder_ms: From pixel values to there.
        sweep_speedup: Unpruned sweep over this one, with the encoder; None without it.
        kv_cache_mib: Keys and values after the prefill.
        peak_memory_mib: Of the device, weights included; None on a CPU, which does not count it.
        flops_percent: Operations of the prefill, of those of the unpruned one, at this shape.
        drivemm_flops_percent: The same at DriveMM's true shape.
    """

    retention_ratio: float
    prune_layer: int
    num_keep: int
    prefill_ms: float
    prefill_p95_ms: float
    prefill_cpu_ms: float | None
    prefill_speedup: float | None = None
    decode_ms: float
    growing_decode_ms: float
    sweep_ms: float
    sweep_with_encoder_ms: float
    sweep_speedup: float | None = None
    kv_cache_mib: float
    peak_memory_mib: float | None
    flops_percent: float
    drivemm_flops_percent: float


@dataclass(slots=True)
class _Samples:
    """The measurements of one case, milliseconds."""

    prefill: list[float] = field(default_factory=list)
    prefill_cpu: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    growing_decode: list[float] = field(default_factory=list)
    kv_cache_mib: float = 0.0
    peak_memory_mib: float | None = None


class Bench:
    """A model with random weights on a device, and the timers of its stages."""

    def __init__(self, plan: PrefillBenchmark) -> None:
        check_device(plan.device)
        self.plan = plan
        self._device = torch.device(plan.device)
        dtype = DTYPES[plan.dtype]
        self.family = build_model(plan.shape, device=self._device, dtype=dtype)
        self.prompt = make_prompt(self.family, plan.shape.num_text_tokens)
        generator = torch.Generator().manual_seed(0)
        side = plan.shape.vision['image_size']
        pixels = torch.randn(NUM_VIEWS, 3, side, side, generator=generator)
        self.pixel_values = pixels.to(self._device, dtype)
        shape = (NUM_VIEWS, plan.shape.num_tokens, plan.shape.text['hidden_size'])
        tokens = torch.randn(shape, generator=generator)
        self.visual_tokens = tokens.to(self._device, dtype)

    def time_ms(self, work: Callable[[], T]) -> tuple[float, float, T]:
        """Return the duration of `work`, its processor time, and its result."""
        return time_ms(self._device, work)

    @torch.inference_mode()
    def encode_ms(self) -> float:
        """Time the vision encoder over one sweep."""
        return self.time_ms(lambda: self.family.vision_module(self.pixel_values))[0]

    def sample(self, ratio: float, layer: int, samples: _Samples) -> None:
        """Measure prefill and decoding of one case once."""
        self._take_peak_memory()
        select = self.selector(ratio)
        steps = self.plan.answer_tokens
        prefill_ms, cpu_ms, (prompt, logits) = self.time_ms(
            lambda: prefill(
                self.family, self.prompt, self.visual_tokens, select, layer, max_new_tokens=steps
            )
        )
        samples.kv_cache_mib = _cache_mib(prompt)
        peaks_mib = [self._take_peak_memory()]
        growing_ms = self._grow_ms(self.family.decoder.fork(prompt, 1), logits)
        self._take_peak_memory()
        generate_ms, *_ = self.time_ms(lambda: generate(self.family, prompt, logits, steps))
        peaks_mib.append(self._take_peak_memory())
        samples.peak_memory_mib = max(peaks_mib) if self._device.type == 'cuda' else None
        samples.prefill.append(prefill_ms)
        samples.prefill_cpu.append(cpu_ms)
        samples.decode.append(generate_ms / (steps - 1))
        samples.growing_decode.append(growing_ms / (steps - 1))

    def _grow_ms(self, prompt: Prefix, logits: Tensor) -> float:
        """Time the baseline: decoding over a cache that grows."""
        steps = self.plan.answer_tokens
        return self.time_ms(lambda: generate(self.family, prompt, logits, steps))[0]

    def _take_peak_memory(self) -> float:
        """Return the peak memory of the GPU since the last call, MiB; 0 on a CPU."""
        if self._device.type != 'cuda':
            return 0.0
        peak_mib = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return peak_mib

    def selector(self, ratio: float) -> SelectTokens | None:
        """Return T-FPS that keeps `ratio` of every view; None if it keeps all tokens."""
        if ratio == 1:
            return None
        count = num_keep_from_retention(self.plan.shape.num_tokens, ratio)
        selector = make_selector('tfps')
        return lambda states: selector.select(states, [count] * NUM_VIEWS)


def generate(
    family: LlavaOnevision, prompt: Prefix, logits: Tensor, num_tokens: int
) -> list[tuple[int, ...]]:
    """Decode `num_tokens` greedily after every row of `prompt`; no token ends an answer early."""
    generations = generate_greedy(
        family.decoder,
        prompt,
        logits,
        embed=family.embed,
        max_new_tokens=num_tokens,
        end_token_ids=(),
    )
    return [generation.token_ids for generation in generations]


def _cache_mib(prompt: Prefix) -> float:
    """Return the size of the cached tokens, without reserved capacity, MiB."""
    num_bytes: int = sum(
        2 * layer.keys[:, :, : layer.get_seq_length()].numel() * layer.keys.element_size()
        for layer in prompt.cache.layers
    )
    return num_bytes / 2**20


def run_prefill_benchmark(plan: PrefillBenchmark) -> Iterator[str | dict[str, Any]]:
    """Measure all cases in turns, so that a disturbance affects all of them.

    Yields:
        A line of text after each case and round; at the end the report.
    """
    bench = Bench(plan)
    samples = {case: _Samples() for case in plan.cases}
    encoding: list[float] = []
    for round_ in range(plan.warm_up + plan.repeats):
        if round_ == plan.warm_up:
            samples = {case: _Samples() for case in plan.cases}
            encoding = []
        encoding.append(bench.encode_ms())
        for case in plan.cases:
            bench.sample(*case, samples[case])
            yield f'round {round_}: {case[0]:.0%} kept before layer {case[1]}'
    rows = _to_rows(plan, samples, statistics.median(encoding))
    yield {
        **_describe(plan),
        'encode_ms': statistics.median(encoding),
        'rows': [asdict(row) for row in rows],
    }


def _to_rows(
    plan: PrefillBenchmark, samples: dict[tuple[float, int], _Samples], encode_ms: float
) -> list[PrefillTiming]:
    flops = {shape.name: _flops_percent(shape, plan) for shape in (plan.shape, DRIVEMM)}
    rows = [
        _to_row(plan, case, samples[case], encode_ms, [f[case] for f in flops.values()])
        for case in plan.cases
    ]
    unpruned = next((row for row in rows if row.retention_ratio == 1), None)
    if unpruned is None:
        return rows
    return [
        replace(
            row,
            prefill_speedup=unpruned.prefill_ms / row.prefill_ms,
            sweep_speedup=unpruned.sweep_with_encoder_ms / row.sweep_with_encoder_ms,
        )
        for row in rows
    ]


def _flops_percent(shape: ModelShape, plan: PrefillBenchmark) -> dict[tuple[float, int], float]:
    count = FlopCount(replace(shape, num_text_tokens=plan.shape.num_text_tokens))
    unpruned = count.prefill(shape.num_tokens, 0)
    return {
        (ratio, layer): 100
        * count.prefill(num_keep_from_retention(shape.num_tokens, ratio), layer)
        / unpruned
        for ratio, layer in plan.cases
    }


def _to_row(
    plan: PrefillBenchmark,
    case: tuple[float, int],
    samples: _Samples,
    encode_ms: float,
    flops_percent: Sequence[float],
) -> PrefillTiming:
    prefill_ms, decode_ms = statistics.median(samples.prefill), statistics.median(samples.decode)
    sweep_ms = prefill_ms + decode_ms * (plan.answer_tokens - 1)
    return PrefillTiming(
        retention_ratio=case[0],
        prune_layer=case[1],
        num_keep=num_keep_from_retention(plan.shape.num_tokens, case[0]),
        prefill_ms=prefill_ms,
        prefill_p95_ms=percentile(samples.prefill, 0.95),
        prefill_cpu_ms=statistics.median(samples.prefill_cpu) if plan.device == 'cpu' else None,
        decode_ms=decode_ms,
        growing_decode_ms=statistics.median(samples.growing_decode),
        sweep_ms=sweep_ms,
        sweep_with_encoder_ms=encode_ms + sweep_ms,
        kv_cache_mib=samples.kv_cache_mib,
        peak_memory_mib=samples.peak_memory_mib,
        flops_percent=flops_percent[0],
        drivemm_flops_percent=flops_percent[-1],
    )


def _describe(plan: PrefillBenchmark) -> dict[str, Any]:
    return {
        'benchmark': 'prefill and decoding, milliseconds per sweep',
        **describe_machine(plan.device),
        'dtype': plan.dtype,
        'shape': asdict(plan.shape),
        'num_views': NUM_VIEWS,
        'tokens_per_view': plan.shape.num_tokens,
        'text_tokens': plan.shape.num_text_tokens,
        'newline_tokens': NUM_VIEWS,
        'answer_tokens': plan.answer_tokens,
        'warm_up': plan.warm_up,
        'repeats': plan.repeats,
        'baseline': BASELINE if 1 in plan.retention_ratios else None,
        'decode_baseline': 'a KV cache that grows by every token, in the same run',
    }
