"""The command that trains p2d-mini."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
import sys

from p2d_node.durable_files import refuse_link
from p2d_node.errors import ConfigError, quote

from p2d_sim.cli.command import add_value, make_parser, run_command
from p2d_sim.training.plan import RunPlan, STAGES, TINY

EXAMPLES = """examples:
  ros2 run p2d_sim train --run runs/p2d-mini --out models/p2d-mini
  ros2 run p2d_sim train --run runs/p2d-mini --out models/p2d-mini --resume
  ros2 run p2d_sim train --run runs/more --out models/more \\
    --start models/p2d-mini --encoder-steps 0
  ros2 run p2d_sim train --run runs/smoke --smoke
"""

EXIT_INTERRUPTED = 130
SMOKE_STEPS = (24, 40)


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; returns the exit code."""
    return run_command(_parser(), _run, argv)


def _run(args: argparse.Namespace) -> int:
    import torch

    from p2d_sim.training.model import export
    from p2d_sim.training.run import Run
    from p2d_sim.training.state import read_progress
    from p2d_sim.training.tokenizer import make_tokenizer

    for name, folder in (('run', args.run), ('out', args.out)):
        _refuse_links(name, folder)
    if read_progress(args.run) is not None and not args.resume:
        raise ConfigError(
            f'run: {args.run} already holds a run; add --resume, or name another folder'
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    run = Run(_plan(args))
    try:
        run.train()
    except KeyboardInterrupt:
        print(f'train: {args.run} is interrupted; continue with --resume', file=sys.stderr)
        return EXIT_INTERRUPTED
    if args.out is not None:
        export(run.parts.model.cpu(), make_tokenizer(), args.out, dtype=torch.bfloat16)
        print(f'{args.out}: written after {run.spent_s / 60:.1f} minutes of training')
    return report_smoke(run.losses, run.plan) if args.smoke else 0


def _refuse_links(name: str, folder: Path | None) -> None:
    """Raise `ConfigError` for a folder that holds links: what they lead to would be written."""
    entries = folder.iterdir() if folder is not None and folder.is_dir() else ()
    for path in entries:
        refuse_link(path, name, 'remove it, or name another folder')
        if not (path.is_file() or path.is_dir()):
            raise ConfigError(f'{name}: {quote(str(path))} is a pipe or a device; remove it')


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


def report_smoke(losses: Mapping[str, Sequence[float]], plan: RunPlan) -> int:
    """Print the first and the last losses of every stage that was trained from its first step.

    Args:
        losses: Stage to the total loss of every step of this run.
        plan: Says how many steps a whole stage has.

    Returns:
        Exit code: 0 if all these losses fell, else 1.
    """
    fell = True
    for stage, steps in zip(STAGES, plan.steps, strict=True):
        if len(losses[stage]) < steps:
            continue  # an earlier run trained the beginning
        first, last = sum(losses[stage][:5]) / 5, sum(losses[stage][-5:]) / 5
        fell &= last < first
        print(f'{stage}: loss {first:.3f} -> {last:.3f}')
    return 0 if fell else 1


def _parser() -> argparse.ArgumentParser:
    default = RunPlan(folder=Path())
    encoder_steps, joint_steps = default.steps
    parser = make_parser(
        'train', 'Trains p2d-mini, from random weights or from a trained model.', EXAMPLES
    )
    parser.add_argument('--run', type=Path, required=True, help='folder for checkpoints and log')
    parser.add_argument('--out', type=Path, help='folder for the trained model')
    parser.add_argument('--resume', action='store_true', help='continue the run in --run')
    parser.add_argument('--start', type=Path, help='folder of a trained model to start from')
    add_value(parser, '--seed', default.seed, 'seed of the initial weights')
    add_value(
        parser, '--encoder-steps', encoder_steps, 'steps of the stage that trains the encoder'
    )
    add_value(
        parser, '--joint-steps', joint_steps, 'steps of the stage that trains the whole model'
    )
    add_value(parser, '--joint-rate', default.learning_rates[1], 'learning rate of that stage')
    add_value(
        parser, '--sweeps', default.sweeps, 'sweeps in the batch of a step, all newly rendered'
    )
    add_value(parser, '--device', default.device, 'cpu or cuda')
    add_value(
        parser, '--workers', default.workers, 'processes that render; 0 renders in this process'
    )
    add_value(parser, '--threads', 0, "threads of torch; 0 is torch's default")
    add_value(parser, '--save-minutes', default.save_minutes, 'minutes between two checkpoints')
    parser.add_argument(
        '--smoke',
        action='store_true',
        help='train a tiny model for a few seconds; exit code 1 if its losses do not fall',
    )
    return parser


if __name__ == '__main__':
    raise SystemExit(main())
