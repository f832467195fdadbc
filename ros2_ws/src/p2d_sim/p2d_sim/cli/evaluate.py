"""The command that measures a trained model and writes results and model card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import time
from typing import Any

from p2d_node.durable_files import write_bytes
from rich.progress import Progress

from p2d_sim.cli.command import add_value, make_parser, run_command

EXAMPLES = """examples:
  ros2 run p2d_sim evaluate --model models/p2d-mini --out evaluation.json
  ros2 run p2d_sim evaluate --model models/p2d-mini --questions 300 --no-retention
"""
CHECKED_SWEEPS = 2
"""Sweeps that `DrivingPipeline` answers as well, for each pair of `CHECKED`."""

CHECKED = (('tfps', 1.0), ('tfps', 0.1), ('grid', 0.25))
"""Selector and retention ratio with which the pipeline must agree."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says; returns the exit code."""
    return run_command(_parser(), _run, argv)


def _run(args: argparse.Namespace) -> int:
    import torch

    from p2d_sim.training.model_card import fill_model_card

    if args.threads:
        torch.set_num_threads(args.threads)
    results = _measure(args)
    text = json.dumps(results, indent=1)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(args.out, f'{text}\n'.encode())
    if args.card is not None:
        fill_model_card(args.card, results)
    print(text if args.json else _brief(results))
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    from p2d_sim.training.evaluation import evaluate
    from p2d_sim.training.held_out import Evaluator, HeldOut

    evaluator = Evaluator(args.model)
    start_s = time.monotonic()
    with Progress(transient=True, disable=args.json) as bar:
        drawing = bar.add_task('draw', total=args.questions)
        sweeps: list[HeldOut] = []
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
            results['retention'] = _measure_retention(evaluator, sweeps, bar)
        results['pipeline'] = _check_pipeline(evaluator, sweeps[:CHECKED_SWEEPS])
    results['minutes'] = round((time.monotonic() - start_s) / 60.0, 1)
    return results


def _measure_retention(evaluator: Any, sweeps: Sequence[Any], bar: Progress) -> Any:
    from p2d_sim.training.evaluation import (
        measure_retention,
        METHODS,
        PRUNE_LAYERS,
        RETENTIONS,
    )

    pruned = [ratio for ratio in RETENTIONS if ratio < 1.0]
    runs = 1 + len(METHODS) * len(pruned) * len(PRUNE_LAYERS)
    task = bar.add_task('prune', total=runs * len(sweeps))
    return measure_retention(evaluator, sweeps, lambda: bar.advance(task))


def _check_pipeline(evaluator: Any, sweeps: Sequence[Any]) -> list[dict[str, Any]]:
    from p2d_sim.training.evaluation import agreement_with_pipeline

    rows = []
    for method, retention in CHECKED:
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
    parser = make_parser(
        'evaluate',
        'Measures a model on held-out sweeps: accuracy, controls, and token pruning.',
        EXAMPLES,
    )
    parser.add_argument('--model', type=Path, required=True, help='folder of the model')
    add_value(parser, '--questions', 1500, 'least number of questions, rounded up to whole sweeps')
    parser.add_argument(
        '--no-retention', action='store_true', help='do not measure token pruning, which is slow'
    )
    parser.add_argument('--out', type=Path, help='JSON file to write the results to')
    parser.add_argument('--card', type=Path, help='model card whose tables are replaced')
    add_value(parser, '--threads', 0, "threads of torch; 0 is torch's default")
    parser.add_argument('--json', action='store_true', help='print the results as JSON')
    return parser


if __name__ == '__main__':
    raise SystemExit(main())
