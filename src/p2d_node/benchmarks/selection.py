"""Time of token selection per sweep beside the published per-token loop, in the same run.

Shapes and retention ratios come in, a report of plain numbers goes out, ready for JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
import statistics
import time
from typing import Any

from p2d_node.benchmarks.measuring import (
    check_device,
    check_memory,
    describe_machine,
    DTYPES,
    percentile,
    synchronize,
)
from p2d_node.benchmarks.plans import SelectionBenchmark
from p2d_node.token_selection import (
    make_selector,
    num_keep_from_retention,
    select_adaptively,
    select_tokens,
)
import torch
from torch import Tensor

BASELINE = 'per-token loop'

STEADY = 1.5
"""A 95th percentile above this many medians shows that another program used the machine."""

MAX_ATTEMPTS = 4
"""How often an unsteady case is measured before its figures are accepted."""

ADAPTIVE = 'tfps adaptive'
"""Name in comparisons of T-FPS with one budget for all views; see `select_adaptively`."""


@dataclass(frozen=True, kw_only=True)
class SelectionTiming:
    """One row: milliseconds per sweep of T-FPS and of the baseline, measured in turns.

    Attributes:
        same_picks: Share of kept tokens that T-FPS and the baseline have in common.
        attempts: How often the case was measured.
        steady: False if even the last attempt was disturbed; see `STEADY`.
    """

    num_views: int
    num_tokens: int
    hidden: int
    retention_ratio: float
    num_keep: int
    tfps_median_ms: float
    tfps_p95_ms: float
    baseline_median_ms: float
    baseline_p95_ms: float
    speedup: float
    same_picks: float
    attempts: int
    steady: bool


def per_token_loop(visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
    """Run T-FPS as published: view by view, pick by pick.

    For every pick the minimum over the distances to all picked tokens is computed anew, and its
    index is copied to the host before the next pick. Distances are float32, as in T-FPS here.

    Args:
        visual_tokens: Float [views, tokens, hidden], any device.
        num_keep: Per view how many tokens stay, each in [1, tokens].

    Returns:
        Per view the kept indices, int64, ascending.
    """
    return [_loop_view(view, count) for view, count in zip(visual_tokens, num_keep, strict=True)]


def _loop_view(tokens: Tensor, num_keep: int) -> Tensor:
    unit = torch.nn.functional.normalize(tokens.float(), dim=-1)
    distance = 1.0 - unit @ unit.T
    distance.fill_diagonal_(torch.inf)
    picks = [int(distance.amin(dim=1).argmax().item())]
    while len(picks) < num_keep:
        to_picks = distance[picks].amin(dim=0)
        to_picks[picks] = -torch.inf
        picks.append(int(to_picks.argmax().item()))
    return torch.tensor(sorted(picks), device=tokens.device)


def run_selection_benchmark(plan: SelectionBenchmark) -> Iterator[SelectionTiming]:
    """Measure case after case.

    Args:
        plan: The cases and rounds.

    Yields:
        One row per case.

    Raises:
        ConfigError: Torch sees no GPU, or a case needs more memory than is free.
    """
    check_device(plan.device)
    for num_tokens in plan.num_tokens:
        check_memory('num_tokens', num_tokens, _num_bytes(plan, num_tokens), plan.device)
    for num_tokens in plan.num_tokens:
        for hidden in plan.hidden:
            generator = torch.Generator().manual_seed(0)
            tokens = torch.randn(plan.num_views, num_tokens, hidden, generator=generator)
            tokens = tokens.to(plan.device, DTYPES[plan.dtype])
            for retention_ratio in plan.retention_ratios:
                yield _measure_steadily(plan, tokens, retention_ratio)


def _num_bytes(plan: SelectionBenchmark, num_tokens: int) -> float:
    """Estimate the memory of a case: its tokens, twice, and the distances of the baseline."""
    tokens = plan.num_views * num_tokens * max(plan.hidden)
    distances = num_tokens * num_tokens * (2.0 + max(plan.retention_ratios))
    return 4.0 * (2 * tokens + distances)


def _measure_steadily(
    plan: SelectionBenchmark, tokens: Tensor, retention_ratio: float
) -> SelectionTiming:
    for attempt in range(1, MAX_ATTEMPTS + 1):
        timing = replace(_measure(plan, tokens, retention_ratio), attempts=attempt)
        if timing.steady:
            break
    return timing


def _measure(plan: SelectionBenchmark, tokens: Tensor, retention_ratio: float) -> SelectionTiming:
    num_views, num_tokens, hidden = tokens.shape
    count = num_keep_from_retention(num_tokens, retention_ratio)
    num_keep = [count] * num_views
    selector = make_selector('tfps')
    ours, theirs = selector.select(tokens, num_keep), per_token_loop(tokens, num_keep)
    same = sum(int(torch.isin(a, b).sum()) for a, b in zip(ours, theirs, strict=True))
    tfps_ms, baseline_ms = _times_in_turns(
        (
            lambda: selector.select(tokens, num_keep),
            lambda: per_token_loop(tokens, num_keep),
        ),
        plan,
        tokens.device,
    )
    spread = max(percentile(t, 0.95) / statistics.median(t) for t in (tfps_ms, baseline_ms))
    return SelectionTiming(
        num_views=num_views,
        num_tokens=num_tokens,
        hidden=hidden,
        retention_ratio=retention_ratio,
        num_keep=count,
        tfps_median_ms=statistics.median(tfps_ms),
        tfps_p95_ms=percentile(tfps_ms, 0.95),
        baseline_median_ms=statistics.median(baseline_ms),
        baseline_p95_ms=percentile(baseline_ms, 0.95),
        speedup=statistics.median(baseline_ms) / statistics.median(tfps_ms),
        same_picks=same / (count * num_views),
        attempts=1,
        steady=spread <= STEADY,
    )


def _times_in_turns(
    functions: Sequence[Callable[[], Any]], plan: SelectionBenchmark, device: torch.device
) -> list[list[float]]:
    """Time the functions alternately, so that a disturbance affects both; milliseconds."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(plan.warm_up + plan.repeats):
        for function, own_times in zip(functions, times, strict=True):
            synchronize(device)
            started = time.perf_counter_ns()
            function()
            synchronize(device)
            if turn >= plan.warm_up:
                own_times.append((time.perf_counter_ns() - started) / 1e6)
    return times


def choose_tokens(visual_tokens: Tensor, num_keep: Sequence[int], method: str) -> list[Tensor]:
    """Choose as `select_tokens` does; `method` may also be `ADAPTIVE`, all views weighing alike.

    Args:
        visual_tokens: Float [views, tokens, hidden], any device.
        num_keep: Per view how many tokens stay, each in [1, tokens]; `ADAPTIVE` keeps their sum.
        method: A selector's name, or `ADAPTIVE`.

    Returns:
        Per view the kept indices, int64, ascending.
    """
    if method == ADAPTIVE:
        return select_adaptively([visual_tokens], num_keep, [1.0] * len(num_keep))
    return select_tokens(visual_tokens, num_keep, method)


def benchmark_report(
    plan: SelectionBenchmark, timings: Sequence[SelectionTiming]
) -> dict[str, Any]:
    """Return the timings and the conditions under which they hold, ready for JSON."""
    return {
        'benchmark': 'token selection, milliseconds per sweep',
        'baseline': BASELINE,
        'input': 'independent normal features, seed 0',
        **describe_machine(plan.device),
        'dtype': plan.dtype,
        'warm_up': plan.warm_up,
        'repeats': plan.repeats,
        'cases': [asdict(timing) for timing in timings],
    }
