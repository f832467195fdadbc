"""Measures what pruning and sharing save in the language model, and prints the figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
import json
from typing import Any

from p2d_node.benchmarks.model_shape import ModelShape, SHAPES
from p2d_node.benchmarks.plans import PrefillBenchmark, QuestionBenchmark
from p2d_node.benchmarks.prefill import run_prefill_benchmark
from p2d_node.benchmarks.questions import run_question_benchmark
from p2d_node.checkpoints.devices import choose_device
from p2d_node.cli.bench_table import print_figures
from p2d_node.cli.screen import InertConsole
from p2d_node.cli.verbs.bench import ModelOptions, PrefillOptions, QuestionsOptions
from p2d_node.errors import ConfigError
from rich.progress import Progress
import torch

CASE = ('kept', 'before\nlayer')
"""Columns that say which case a row is of."""


def run_prefill(options: PrefillOptions) -> int:
    """Measure and print; returns the exit code."""
    shape = _shape(options)
    if options.text_tokens is not None:
        shape = replace(shape, num_text_tokens=options.text_tokens)
    plan = PrefillBenchmark(
        retention_ratios=options.retention_ratios,
        prune_layers=options.prune_layers or _prune_layers(shape),
        **_model_plan(options, shape),
    )
    report = _follow(run_prefill_benchmark(plan), plan.num_steps)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print_prefill(report)
    return 0


def _shape(options: ModelOptions) -> ModelShape:
    if options.shape not in SHAPES:
        raise ConfigError(f'shape: got {options.shape!r}, allowed: {", ".join(SHAPES)}')
    shape = SHAPES[options.shape]
    return shape if options.layers is None else shape.with_layers(options.layers)


def _prune_layers(shape: ModelShape) -> list[int]:
    """Return the layers that are measured by default, as far as the shape has them."""
    default = PrefillBenchmark().prune_layers
    return [layer for layer in default if layer < shape.text['num_hidden_layers']]


def _model_plan(options: ModelOptions, shape: ModelShape) -> dict[str, Any]:
    """Return the arguments of a plan that both verbs share; sets the number of threads."""
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    return {
        'shape': shape,
        'answer_tokens': options.answer_tokens,
        'device': str(choose_device(options.device)),
        'dtype': options.dtype,
        'warm_up': options.warm_up,
        'repeats': options.repeats,
    }


def _follow(steps: Iterator[str | dict[str, Any]], num_steps: int) -> dict[str, Any]:
    """Show progress while `steps` names what it has done; returns the report that comes last."""
    report: dict[str, Any] = {}
    with Progress(console=InertConsole(stderr=True)) as progress:
        task = progress.add_task('measuring', total=num_steps)
        for step in steps:
            if isinstance(step, dict):
                report = step
            else:
                progress.update(task, advance=1, description=step)
    return report


def _print_prefill(report: dict[str, Any]) -> None:
    model = f'on {report["device"]}: model {report["shape"]["name"]}'
    print_figures(
        (*CASE, 'prefill', 'p95', 'CPU', 'faster', 'FLOPs', 'DriveMM\nFLOPs'),
        [_prefill_row(row) for row in report['rows']],
        title=f'Prefill, ms, {model}',
    )
    print_figures(
        (*CASE, 'per\ntoken', 'growing\ncache', 'sweep', 'with\nencoder', 'faster'),
        [_sweep_row(row) for row in report['rows']],
        title=f'Decoding and whole sweeps, ms, {model}',
    )
    print_figures(
        (*CASE, 'KV', 'peak'),
        [_memory_row(row) for row in report['rows']],
        title=f'Memory, MiB, {model}',
        caption=f'{report["num_views"]} views x {report["tokens_per_view"]} tokens and '
        f'{report["newline_tokens"]} newlines, {report["text_tokens"]} text tokens, '
        f'{report["answer_tokens"]} answer tokens; {report["dtype"]}, '
        f'{report["torch_threads"]} threads; medians of {report["repeats"]} rounds after '
        f'{report["warm_up"]}; encoder {report["encode_ms"]:.0f} ms; baseline: '
        f'{report["baseline"] or "none, as the retention ratio 1 was not measured"}',
    )


def _case(row: dict[str, Any]) -> tuple[str, str]:
    layer = str(row['prune_layer']) if row['retention_ratio'] < 1 else '-'
    return f'{row["num_keep"]} ({row["retention_ratio"]:.0%})', layer


def _prefill_row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        *_case(row),
        f'{row["prefill_ms"]:.0f}',
        f'{row["prefill_p95_ms"]:.0f}',
        _or_dash(row['prefill_cpu_ms']),
        _times(row['prefill_speedup']),
        f'{row["flops_percent"]:.1f} %',
        f'{row["drivemm_flops_percent"]:.1f} %',
    )


def _sweep_row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        *_case(row),
        f'{row["decode_ms"]:.1f}',
        f'{row["growing_decode_ms"]:.1f}',
        f'{row["sweep_ms"]:.0f}',
        f'{row["sweep_with_encoder_ms"]:.0f}',
        _times(row['sweep_speedup']),
    )


def _memory_row(row: dict[str, Any]) -> tuple[str, ...]:
    return (*_case(row), f'{row["kv_cache_mib"]:.1f}', _or_dash(row['peak_memory_mib']))


def _or_dash(value: float | None) -> str:
    return '-' if value is None else f'{value:.0f}'


def _times(speedup: float | None) -> str:
    return '-' if speedup is None else f'{speedup:.1f}x'


def run_questions(options: QuestionsOptions) -> int:
    """Measure and print; returns the exit code."""
    plan = QuestionBenchmark(
        num_questions=options.num_questions,
        retention_ratio=options.retention_ratio,
        prune_layer=options.prune_layer,
        **_model_plan(options, _shape(options)),
    )
    report = _follow(run_question_benchmark(plan), plan.num_steps)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print_questions(report)
    return 0


def _print_questions(report: dict[str, Any]) -> None:
    same = 'the same answers' if report['same_answers'] else 'DIFFERENT ANSWERS'
    separately_ms = report['median_ms']['separately']
    rows = [
        (
            way.replace('_', ' '),
            f'{median_ms:.0f}',
            f'{report["median_cpu_ms"][way]:.0f}',
            f'{median_ms / separately_ms:.0%}',
        )
        for way, median_ms in report['median_ms'].items()
    ]
    print_figures(
        ('how', 'ms', 'CPU ms', 'of separately'),
        rows,
        title=f'{report["num_questions"]} questions about one sweep, on {report["device"]}',
        caption=f'model {report["shape"]}, {report["retention_ratio"]:.0%} kept before layer '
        f'{report["prune_layer"]}, {report["answer_tokens"]} tokens per answer, without the '
        f'encoder; {report["dtype"]}, {report["torch_threads"]} threads, medians of '
        f'{report["repeats"]} rounds after {report["warm_up"]}; {same}, '
        f'{report["different_answers"]} of them different from each other',
    )
