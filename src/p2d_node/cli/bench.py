"""`p2d bench`: times and figures of single stages, each beside a named baseline."""

from __future__ import annotations

import argparse
import json
from typing import Any, TYPE_CHECKING

from p2d_node.cli.bench_coverage import add_coverage
from p2d_node.cli.bench_language_model import add_prefill, add_questions
from p2d_node.cli.bench_node import add_node

if TYPE_CHECKING:
    from p2d_node.evaluation.selection_benchmark import SelectionTiming

SELECT_EXAMPLE = """example:
  p2d bench select --tokens 729 --hidden 1152 --retention-ratio 0.1 0.25
  p2d bench select --json > selection.json
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb `bench` with its own verbs."""
    bench = subparsers.add_parser(
        'bench',
        help='measure single stages',
        description=__doc__,
        epilog=SELECT_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = bench.add_subparsers(dest='bench_verb', required=True)
    _add_select(verbs)
    add_coverage(verbs)
    add_prefill(verbs)
    add_questions(verbs)
    add_node(verbs)


def _add_select(verbs: argparse._SubParsersAction[Any]) -> None:
    parser = verbs.add_parser(
        'select',
        help='time of token selection per sweep, beside the published per-token loop',
        description='Time of token selection per sweep, beside the published per-token loop.',
        epilog=SELECT_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--views', type=int, help='cameras (default 6)')
    parser.add_argument('--tokens', type=int, nargs='+', help='tokens per view')
    parser.add_argument('--hidden', type=int, nargs='+', help='features per token')
    parser.add_argument('--retention-ratio', type=float, nargs='+', help='kept/total')
    parser.add_argument(
        '--device', default='auto', help='cpu or cuda (default: a GPU where there is one)'
    )
    parser.add_argument('--dtype', help='float32, bfloat16 or float16 (default float32)')
    parser.add_argument('--warm-up', type=int, help='sweeps before the measured ones (default 2)')
    parser.add_argument('--repeats', type=int, help='measured sweeps per case (default 10)')
    parser.add_argument('--threads', type=int, help="CPU threads of torch (default: torch's own)")
    parser.add_argument('--json', action='store_true', help='print figures as JSON')
    parser.set_defaults(run=run_select)


def run_select(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    from p2d_node.checkpoints.devices import choose_device
    from p2d_node.errors import ConfigError
    from p2d_node.evaluation import selection_benchmark as benchmark
    from rich.console import Console
    from rich.progress import track
    import torch

    if args.threads is not None:
        if args.threads < 1:
            raise ConfigError(f'--threads: got {args.threads}, allowed: 1 or more')
        torch.set_num_threads(args.threads)
    given = {
        'num_views': args.views,
        'num_tokens': args.tokens,
        'hidden': args.hidden,
        'retention_ratios': args.retention_ratio,
        'device': str(choose_device(args.device)),
        'dtype': args.dtype,
        'warm_up': args.warm_up,
        'repeats': args.repeats,
    }
    plan = benchmark.SelectionBenchmark(**{k: v for k, v in given.items() if v is not None})
    cases = track(
        benchmark.run_selection_benchmark(plan),
        description='measuring',
        total=plan.num_cases,
        console=Console(stderr=True),
    )
    report = benchmark.benchmark_report(plan, timings := list(cases))
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print_timings(report, timings)
    return 0


def _print_timings(report: dict[str, Any], timings: list[SelectionTiming]) -> None:
    from p2d_node.cli.bench_table import print_figures

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
