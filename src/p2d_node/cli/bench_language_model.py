"""`p2d bench prefill` and `p2d bench questions`: what pruning and sharing save in the decoder."""

from __future__ import annotations

import argparse
import json
from typing import Any

PREFILL_EXAMPLE = """example:
  p2d bench prefill --threads 1
  p2d bench prefill --shape drivemm --device cuda --dtype bfloat16 --json > prefill.json
"""

QUESTIONS_EXAMPLE = """example:
  p2d bench questions --questions 20 --threads 1 --json
"""


CASE = ('kept', 'before\nlayer')
"""Columns that say which case a row is of."""


def add_prefill(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add the verb `prefill`."""
    parser = verbs.add_parser(
        'prefill',
        help='prefill, decoding and whole sweeps at several retention ratios, beside unpruned',
        description='Times and operations of a model with random weights, per retention ratio and '
        'pruning layer; operations are also counted at the true shape of DriveMM.',
        epilog=PREFILL_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_model(parser)
    parser.add_argument('--retention-ratio', type=float, nargs='+', help='kept/total')
    parser.add_argument('--prune-layer', type=int, nargs='+', help='(default 0 and 1)')
    parser.add_argument('--text-tokens', type=int, help='tokens of the prompt that are text')
    parser.set_defaults(run=run_prefill)


def add_questions(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add the verb `questions`."""
    parser = verbs.add_parser(
        'questions',
        help='many questions about one sweep: together, one by one, and separately',
        description='Time of answering many questions about one sweep, as a batch and otherwise.',
        epilog=QUESTIONS_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_model(parser)
    parser.add_argument('--questions', type=int, help='(default 20)')
    parser.add_argument('--retention-ratio', type=float, help='kept/total (default 0.1)')
    parser.add_argument('--prune-layer', type=int, help='(default 0)')
    parser.set_defaults(run=run_questions)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--shape', default='scaled', help='scaled (default) or drivemm, an 8B')
    parser.add_argument('--layers', type=int, help='fewer decoder layers than the shape has')
    parser.add_argument('--answer-tokens', type=int, help='tokens per answer (default 16)')
    parser.add_argument(
        '--device', default='auto', help='cpu or cuda (default: a GPU where there is one)'
    )
    parser.add_argument('--dtype', help='float32, bfloat16 or float16 (default float32)')
    parser.add_argument('--warm-up', type=int, help='rounds before the measured ones (default 1)')
    parser.add_argument('--repeats', type=int, help='measured rounds (default 3)')
    parser.add_argument('--threads', type=int, help="CPU threads of torch (default: torch's own)")
    parser.add_argument('--json', action='store_true', help='print figures as JSON')


def _plan(args: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a plan that were given; sets the number of threads."""
    from p2d_node.checkpoints.devices import choose_device
    from p2d_node.errors import ConfigError
    from p2d_node.evaluation.model_shape import SHAPES
    import torch

    if args.threads is not None:
        if args.threads < 1:
            raise ConfigError(f'--threads: got {args.threads}, allowed: 1 or more')
        torch.set_num_threads(args.threads)
    if args.shape not in SHAPES:
        raise ConfigError(f'--shape: got {args.shape!r}, allowed: {", ".join(SHAPES)}')
    shape = SHAPES[args.shape]
    given |= {
        'shape': shape if args.layers is None else shape.with_layers(args.layers),
        'answer_tokens': args.answer_tokens,
        'device': str(choose_device(args.device)),
        'dtype': args.dtype,
        'warm_up': args.warm_up,
        'repeats': args.repeats,
    }
    return {name: value for name, value in given.items() if value is not None}


def run_prefill(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    from dataclasses import replace

    from p2d_node.evaluation.prefill_benchmark import (
        PrefillBenchmark,
        PRUNE_LAYERS,
        run_prefill_benchmark,
    )

    given = {'retention_ratios': args.retention_ratio, 'prune_layers': args.prune_layer}
    arguments = _plan(args, given)
    num_layers = arguments['shape'].text['num_hidden_layers']
    arguments.setdefault('prune_layers', [k for k in PRUNE_LAYERS if k < num_layers])
    plan = PrefillBenchmark(**arguments)
    if args.text_tokens is not None:
        plan = replace(plan, shape=replace(plan.shape, num_text_tokens=args.text_tokens))
    report = _follow(run_prefill_benchmark(plan), plan.num_steps)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print_prefill(report)
    return 0


def _follow(steps: Any, num_steps: int) -> dict[str, Any]:
    """Show progress while `steps` names what it has done; returns the report that comes last."""
    from rich.console import Console
    from rich.progress import Progress

    report: dict[str, Any] = {}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task('measuring', total=num_steps)
        for step in steps:
            if isinstance(step, dict):
                report = step
            else:
                progress.update(task, advance=1, description=step)
    return report


def _print_prefill(report: dict[str, Any]) -> None:
    from p2d_node.cli.bench_table import print_figures

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


def run_questions(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    from p2d_node.evaluation.question_benchmark import QuestionBenchmark, run_question_benchmark

    given = {
        'num_questions': args.questions,
        'retention_ratio': args.retention_ratio,
        'prune_layer': args.prune_layer,
    }
    plan = QuestionBenchmark(**_plan(args, given))
    report = _follow(run_question_benchmark(plan), plan.num_steps)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print_questions(report)
    return 0


def _print_questions(report: dict[str, Any]) -> None:
    from p2d_node.cli.bench_table import print_figures

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
