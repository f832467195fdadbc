"""Prints the computed time of a sweep on a machine that is not at hand."""

from __future__ import annotations

import json
from typing import Any

from p2d_node.benchmarks.budget import budget_report, COMPUTED
from p2d_node.benchmarks.machines import GPUS, Machine
from p2d_node.benchmarks.model_sizes import find_model_sizes
from p2d_node.benchmarks.plans import SweepPlan
from p2d_node.cli.bench_table import print_figures
from p2d_node.cli.verbs.budget import BudgetOptions

COLUMNS = ('encoder_ms', 'prefill_ms', 'pass_ms', 'decode_ms', 'sweep_ms', 'answers_per_s')


def run(options: BudgetOptions) -> int:
    """Compute and print; returns the exit code."""
    picture_px = None
    if options.picture_height_px is not None and options.picture_width_px is not None:
        picture_px = (options.picture_height_px, options.picture_width_px)
    sizes = find_model_sizes(options.model, picture_px)
    report = budget_report(sizes, _machine(options), _plans(options))
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0


def _machine(options: BudgetOptions) -> Machine:
    if options.gpu is not None:
        return GPUS[options.gpu]
    return Machine(
        name='own figures',
        bandwidth_gb_s=float(options.bandwidth_gb_s or 0.0),
        tflops=float(options.tflops or 0.0),
    )


def _plans(options: BudgetOptions) -> list[SweepPlan]:
    return [
        SweepPlan(
            retention_ratio=retention_ratio,
            prune_layer=options.prune_layer,
            num_views=options.num_views,
            num_questions=options.num_questions,
            answer_tokens=options.answer_tokens,
            text_tokens=options.text_tokens,
            question_tokens=options.question_tokens,
            weights_bits=int(options.weights_bits),
            tokens_per_pass=options.tokens_per_pass,
            draft_tokens=options.draft_tokens,
            bandwidth_efficiency=options.bandwidth_efficiency,
            compute_efficiency=options.compute_efficiency,
        )
        for retention_ratio in options.retention_ratios
    ]


def _print(report: dict[str, Any]) -> None:
    machine, assumed = report['machine'], report['assumed']
    headings = [
        f'{name.removesuffix("_ms").replace("_per_s", "/s")}\ncomputed' for name in COLUMNS
    ]
    print_figures(
        ('kept', *headings),
        [_row(row) for row in report['rows']],
        title=f'Computed, not measured: {report["model"]} on {machine["name"]}, ms per sweep',
        caption=f'{COMPUTED}: {machine["bandwidth_gb_s"]:g} GB/s x '
        f'{assumed["bandwidth_efficiency"]:g}, {machine["tflops"]:g} TFLOPS x '
        f'{assumed["compute_efficiency"]:g} (assumed shares); {report["pictures"]} x '
        f'{report["tokens_per_picture"]} visual tokens, {assumed["num_questions"]} questions, '
        f'{assumed["answer_tokens"]} tokens per answer, {assumed["tokens_per_pass"]:g} per pass, '
        f'{assumed["weights_bits"]} bits per weight; without preprocessing and token selection',
    )


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    *times, answers_per_s = (row[f'computed_{name}'] for name in COLUMNS)
    return (
        f'{row["num_keep"]} ({row["retention_ratio"]:.0%})',
        *(f'{time_ms:.1f}' for time_ms in times),
        f'{answers_per_s:.2f}',
    )
