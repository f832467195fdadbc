"""Measures token selection and prints its times."""

from __future__ import annotations

import json
from typing import Any

from p2d_node.benchmarks.plans import SelectionBenchmark
from p2d_node.benchmarks.selection import (
    benchmark_report,
    run_selection_benchmark,
    SelectionTiming,
)
from p2d_node.checkpoints.devices import choose_device
from p2d_node.cli.bench_table import print_figures
from p2d_node.cli.screen import InertConsole
from p2d_node.cli.verbs.bench import SelectOptions
from rich.progress import track
import torch


def run(options: SelectOptions) -> int:
    """Measure and print; returns the exit code."""
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    plan = SelectionBenchmark(
        num_views=options.num_views,
        num_tokens=options.num_tokens,
        hidden=options.hidden,
        retention_ratios=options.retention_ratios,
        device=str(choose_device(options.device)),
        dtype=options.dtype,
        warm_up=options.warm_up,
        repeats=options.repeats,
    )
    cases = track(
        run_selection_benchmark(plan),
        description='measuring',
        total=plan.num_cases,
        console=InertConsole(stderr=True),
    )
    report = benchmark_report(plan, timings := list(cases))
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print_timings(report, timings)
    return 0


def _print_timings(report: dict[str, Any], timings: list[SelectionTiming]) -> None:
    rows = [
        (
            f'{row.num_views} x {row.num_tokens} x {row.hidden}',
            f'{row.num_keep} ({row.retention_ratio:.0%})',
            f'{row.tfps_median_ms:.2f}',
            f'{row.tfps_p95_ms:.2f}',
            f'{row.baseline_median_ms:.2f}',
            f'{row.baseline_p95_ms:.2f}',
            f'{row.speedup:.1f}x',
        )
        for row in timings
    ]
    print_figures(
        ('views x tokens\nx hidden', 'kept', 'T-FPS', 'p95', 'baseline', 'p95', 'ratio'),
        rows,
        title=f'Token selection, ms per sweep, on {report["device"]}',
        caption=f'baseline: {report["baseline"]}, in the same run; torch {report["torch"]}, '
        f'{report["torch_threads"]} threads, {report["dtype"]}, {report["repeats"]} sweeps after '
        f'{report["warm_up"]}',
    )
