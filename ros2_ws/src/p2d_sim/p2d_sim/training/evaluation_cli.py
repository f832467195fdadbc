"""The command that measures a finished model and writes results and model card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import sys
import time
from typing import Any

from p2d_node.errors import P2dError
from rich.progress import Progress
import torch

from p2d_sim.training.evaluation import (
    agreement_with_pipeline,
    evaluate,
    Evaluator,
    measure_retention,
    METHODS,
    PRUNE_LAYERS,
    RETENTIONS,
)
from p2d_sim.training.model_card import fill_model_card

EXAMPLE = """examples:
  evaluate --model models/p2d-mini --out benchmarks/results/p2d_mini-2-core-cpu.json
  evaluate --model models/p2d-mini --questions 300 --no-retention
"""
CHECKED_SWEEPS = 2
"""Sweeps that the pipeline answers too, per method."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says; returns the exit code."""
    args = _parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        results = _measure(args)
    except P2dError as err:
        print(f'evaluate: {err}', file=sys.stderr)
        return 2
    text = json.dumps(results, indent=1)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + '\n', encoding='utf-8')
    if args.card is not None:
        fill_model_card(args.card, results)
    print(text if args.json else _brief(results))
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    evaluator = Evaluator(args.model)
    start_s = time.monotonic()
    with Progress(transient=True, disable=args.json) as bar:
        drawing = bar.add_task('draw', total=args.questions)
        sweeps = []
        for sweep in evaluator.sweeps(args.questions):
            sweeps.append(sweep)
            bar.advance(drawing, len(sweep.packed.asked))
        asking = bar.add_task('ask', total=len(sweeps))
        results: dict[str, Any] = {
            'model': args.model.name,
            'sweeps': len(sweeps),
            'frames': 'drawn at 1600x900, JPEG quality 90, prepared by p2d_node',
            **evaluate(evaluator, sweeps, lambda: bar.advance(asking)),
        }
        if not args.no_retention:
            pruned = [ratio for ratio in RETENTIONS if ratio < 1.0]
            runs = 1 + len(METHODS) * len(pruned) * len(PRUNE_LAYERS)
            pruning = bar.add_task('prune', total=runs * len(sweeps))
            results['retention'] = measure_retention(
                evaluator, sweeps, lambda: bar.advance(pruning)
            )
        results['pipeline'] = _check_pipeline(evaluator, sweeps[:CHECKED_SWEEPS])
    results['minutes'] = round((time.monotonic() - start_s) / 60.0, 1)
    return results


def _check_pipeline(evaluator: Evaluator, sweeps: Sequence[Any]) -> list[dict[str, Any]]:
    rows = []
    for method, retention in (('tfps', 1.0), ('tfps', 0.1), ('grid', 0.25)):
        agreed, asked = agreement_with_pipeline(
            evaluator, sweeps, method=method, retention=retention
        )
        row = {'method': method, 'retention_ratio': retention}
        rows.append({**row, 'agreed': agreed, 'asked': asked})
    return rows


def _brief(results: dict[str, Any]) -> str:
    lines = [
        f'{results["pictures"]["questions"]} questions about {results["sweeps"]} sweeps',
        f'accuracy {results["pictures"]["accuracy"]:.3f}, multiple choice '
        f'{results["pictures"]["choice"]:.3f}, blank {results["blank"]["accuracy"]:.3f}, '
        f'shuffled {results["shuffled"]["accuracy"]:.3f}, majority {results["majority"]:.3f}',
    ]
    lines += [
        f'{kind:20s} {row["accuracy"]:.3f} of {row["asked"]}, majority {row["majority"]:.3f}'
        for kind, row in results['kinds'].items()
    ]
    lines += [
        f'prune_layer {row["prune_layer"]} {row["method"]:9s} {row["retention_ratio"]:.2f}: '
        f'{row["accuracy"]:.3f} ({row["low"]:.3f}-{row["high"]:.3f})'
        for row in results.get('retention', [])
    ]
    return '\n'.join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='evaluate',
        description='Measures a model on held-out sweeps: accuracy, controls, and token pruning.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--model', type=Path, required=True, help='checkpoint folder')
    parser.add_argument('--questions', type=int, default=1500, help='at least so many')
    parser.add_argument('--no-retention', action='store_true', help='leave token pruning out')
    parser.add_argument('--out', type=Path, help='JSON file of the results')
    parser.add_argument('--card', type=Path, help='model card whose tables are filled in')
    parser.add_argument('--threads', type=int, default=0, help='threads of torch, 0: its choice')
    parser.add_argument('--json', action='store_true', help='print the results as JSON')
    return parser


if __name__ == '__main__':
    raise SystemExit(main())
