"""`p2d bench`: times and figures of single stages, each beside a named baseline."""

from __future__ import annotations

import argparse
from dataclasses import asdict
import json
from pathlib import Path
from typing import Any, TYPE_CHECKING

from p2d_node.cli.bench_language_model import add_prefill, add_questions
from p2d_node.cli.bench_node import add_node

if TYPE_CHECKING:
    from p2d_node.evaluation.selection_benchmark import SelectionTiming
    from torch import Tensor

SELECT_EXAMPLE = """example:
  p2d bench select --tokens 729 --hidden 1152 --retention-ratio 0.1 0.25
  p2d bench select --json > selection.json
"""

COVERAGE_EXAMPLE = """example:
  p2d bench coverage visual_tokens.npy --retention-ratio 0.1 --plot kept.png
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
    _add_coverage(verbs)
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
    parser.add_argument('--device', help='cpu or cuda (default: a GPU where there is one)')
    parser.add_argument('--dtype', help='float32, bfloat16 or float16 (default float32)')
    parser.add_argument('--warm-up', type=int, help='sweeps before the measured ones (default 2)')
    parser.add_argument('--repeats', type=int, help='measured sweeps per case (default 10)')
    parser.add_argument('--threads', type=int, help="CPU threads of torch (default: torch's own)")
    parser.add_argument('--json', action='store_true', help='print figures as JSON')
    parser.set_defaults(run=run_select)


def _add_coverage(verbs: argparse._SubParsersAction[Any]) -> None:
    parser = verbs.add_parser(
        'coverage',
        help='how well kept tokens stand for dropped ones, per selection method',
        description='Distance (1 - cosine) of dropped tokens to the nearest kept one.',
        epilog=COVERAGE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('visual_tokens', type=Path, help='.npy, float [views, tokens, hidden]')
    parser.add_argument('--retention-ratio', type=float, default=0.1, help='kept/total')
    parser.add_argument('--plot', type=Path, help='picture of what each method keeps')
    parser.add_argument('--images', type=Path, nargs='+', help='one picture per view, below it')
    parser.add_argument('--json', action='store_true', help='print figures as JSON')
    parser.set_defaults(run=run_coverage)


def run_select(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
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
        'device': args.device or ('cuda' if torch.cuda.is_available() else 'cpu'),
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
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f'Token selection, ms per sweep, on {report["device"]}',
        caption=f'baseline: {report["baseline"]}, in the same run; torch {report["torch"]}, '
        f'{report["torch_threads"]} threads, {report["dtype"]}, {report["repeats"]} sweeps after '
        f'{report["warm_up"]}',
    )
    for heading in ('views x tokens x hidden', 'kept', 'T-FPS', 'p95', 'baseline', 'p95', 'ratio'):
        table.add_column(heading, justify='right')
    for row in timings:
        table.add_row(
            f'{row.num_views} x {row.num_tokens} x {row.hidden}',
            f'{row.num_keep} ({row.retention_ratio:.0%})',
            f'{row.tfps_median_ms:.2f}',
            f'{row.tfps_p95_ms:.2f}',
            f'{row.baseline_median_ms:.2f}',
            f'{row.baseline_p95_ms:.2f}',
            f'{row.speedup:.1f}x',
        )
    Console().print(table)


def run_coverage(args: argparse.Namespace) -> int:
    """Compare the selection methods on stored tokens; returns the exit code."""
    from p2d_node.evaluation.coverage import compare_coverage
    from p2d_node.token_selection import num_keep_from_retention
    from p2d_node.token_selection.factory import SELECTORS

    tokens = _load_tokens(args.visual_tokens)
    num_views, num_tokens, _ = tokens.shape
    num_keep = [num_keep_from_retention(num_tokens, args.retention_ratio)] * num_views
    compared = compare_coverage(tokens, num_keep, list(SELECTORS))
    figures = {method: asdict(coverage) for method, (coverage, _) in compared.items()}
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        _print_coverage(figures)
    if args.plot:
        _plot(args, {method: kept for method, (_, kept) in compared.items()}, tokens)
    return 0


def _load_tokens(path: Path) -> Tensor:
    import numpy as np
    from p2d_node.errors import ConfigError
    import torch

    try:
        tokens = torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, EOFError, ValueError, TypeError) as err:
        raise ConfigError(f'{path}: not a readable .npy array of numbers: {err}') from err
    if tokens.dim() != 3 or not torch.is_floating_point(tokens):
        raise ConfigError(
            f'{path}: got {tokens.dtype} {list(tokens.shape)}, '
            'allowed: float [views, tokens, hidden]'
        )
    return tokens


def _print_coverage(figures: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title='Distance of dropped tokens to the nearest kept one (1 - cosine)')
    for heading in ('method', 'mean', 'worst', 'kept per view'):
        table.add_column(heading, justify='right')
    for method, row in figures.items():
        kept = ' '.join(str(count) for count in row['num_kept'])
        mean, worst = f'{row["mean_distance"]:.4f}', f'{row["worst_distance"]:.4f}'
        table.add_row(method, mean, worst, kept)
    Console().print(table)


def _plot(args: argparse.Namespace, kept: dict[str, list[Tensor]], tokens: Tensor) -> None:
    from p2d_node.errors import ConfigError
    from p2d_node.evaluation.coverage import plot_kept_tokens
    from p2d_node.records import NUSCENES_CAMERAS

    num_views, num_tokens, _ = tokens.shape
    if args.images and len(args.images) != num_views:
        raise ConfigError(f'--images: got {len(args.images)}, allowed: {num_views}, one per view')
    names = NUSCENES_CAMERAS if num_views == len(NUSCENES_CAMERAS) else range(num_views)
    plot_kept_tokens(
        args.plot,
        kept,
        num_tokens,
        view_names=[str(name) for name in names],
        images=[_load_image(path) for path in args.images] if args.images else None,
    )


def _load_image(path: Path) -> Any:
    import numpy as np
    from p2d_node.errors import ConfigError
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert('RGB'))
    except (OSError, UnidentifiedImageError) as err:
        raise ConfigError(f'{path}: not a readable picture: {err}') from err
