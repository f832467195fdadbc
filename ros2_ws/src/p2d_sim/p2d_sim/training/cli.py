"""The command that trains p2d-mini."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
import sys

from p2d_node.errors import P2dError
import torch

from p2d_sim.training.model import export, TINY
from p2d_sim.training.run import Run, RunPlan
from p2d_sim.training.state import read_progress
from p2d_sim.training.tokenizer import make_tokenizer

EXAMPLE = """examples:
  train --run runs/p2d-mini --out models/p2d-mini
  train --run runs/p2d-mini --out models/p2d-mini --resume
  train --run runs/more --out models/more --start models/p2d-mini --encoder-steps 0
  train --run runs/smoke --smoke
"""

SMOKE_STEPS = (24, 40)


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; returns the exit code."""
    args = _parser().parse_args(argv)
    if read_progress(args.run) is not None and not args.resume:
        print(
            f'--run: {args.run} holds a run already; add --resume, or choose another folder',
            file=sys.stderr,
        )
        return 2
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        run = Run(_plan(args))
        run.train()
    except P2dError as err:
        print(f'train: {err}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f'{args.run}: interrupted; --resume goes on from the last checkpoint', file=sys.stderr
        )
        return 130
    if args.out is not None:
        export(run.parts.model.cpu(), make_tokenizer(), args.out, dtype=torch.bfloat16)
        print(f'{args.out}: written after {run.spent_s / 60:.1f} minutes of training')
    return _report_smoke(run) if args.smoke else 0


def _plan(args: argparse.Namespace) -> RunPlan:
    plan = RunPlan(
        folder=args.run,
        seed=args.seed,
        steps=(args.encoder_steps, args.joint_steps),
        sweeps=args.sweeps,
        device=args.device,
        workers=args.workers,
        save_minutes=args.save_minutes,
        learning_rates=(RunPlan.learning_rates[0], args.joint_rate),
        start=args.start,
    )
    if not args.smoke:
        return plan
    return replace(plan, size=TINY, steps=SMOKE_STEPS, sweeps=2, check_minutes=0.0)


def _report_smoke(run: Run) -> int:
    falls = True
    for (stage, losses), steps in zip(run.losses.items(), run.plan.steps, strict=True):
        if len(losses) < steps:
            continue  # an earlier run has trained it, or its beginning
        first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
        falls &= last < first
        print(f'{stage}: loss {first:.3f} -> {last:.3f}')
    return 0 if falls else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='train',
        description='Trains p2d-mini on freshly rendered sweeps, from nothing or from a model.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = RunPlan(folder=Path())
    parser.add_argument('--run', type=Path, required=True, help='folder of checkpoints and log')
    parser.add_argument('--out', type=Path, help='folder of the finished model')
    parser.add_argument('--resume', action='store_true', help='go on with the run in --run')
    parser.add_argument('--seed', type=int, default=default.seed)
    parser.add_argument('--encoder-steps', type=int, default=default.steps[0])
    parser.add_argument('--joint-steps', type=int, default=default.steps[1])
    parser.add_argument(
        '--joint-rate', type=float, default=default.learning_rates[1], help='its learning rate'
    )
    parser.add_argument('--start', type=Path, help='finished model to start from')
    parser.add_argument('--sweeps', type=int, default=default.sweeps, help='sweeps per step')
    parser.add_argument('--device', default=default.device, help='cpu or cuda')
    parser.add_argument(
        '--workers', type=int, default=default.workers, help='rendering processes, 0: none'
    )
    parser.add_argument('--threads', type=int, default=0, help='threads of torch, 0: its choice')
    parser.add_argument('--save-minutes', type=float, default=default.save_minutes)
    parser.add_argument(
        '--smoke', action='store_true', help='a tiny model for seconds; fails if no loss falls'
    )
    return parser
