"""`p2d bench node`: from the first frame of a sweep to its answers, through ROS."""

from __future__ import annotations

import argparse
from contextlib import redirect_stdout
from dataclasses import fields
import json
from pathlib import Path
import sys
import tempfile
from typing import Any

from p2d_node.config import DEFAULT_QUESTIONS, DriveConfig, EncoderConfig
from p2d_node.errors import ConfigError, P2dError

EXAMPLE = """example:
  p2d bench node --model models/drivemm --hz 2 --sweeps 40 --retention-ratio 0.1
"""

SHARES = (0.5, 0.9, 0.95, 1.0)


def add_node(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add the verb `node`."""
    parser = verbs.add_parser(
        'node',
        help='latency of the whole node, from the first frame of a sweep to its answers',
        description='Plays sweeps to a drive node over DDS and reports the latency of each stage.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--model', help='checkpoint folder, or "untrained"')
    parser.add_argument('--bag', type=Path, help='six cameras (default: drawn by p2d_sim)')
    parser.add_argument('--sweeps', type=int, default=30, help='drawn (default 30)')
    parser.add_argument('--hz', type=float, default=1.0, help='its sweeps per second (default 1)')
    parser.add_argument('--warm-up', type=int, default=3, help='sweeps left out (default 3)')
    parser.add_argument('--retention-ratio', type=float, default=0.1, help='for all cameras')
    parser.add_argument('--questions', type=int, default=1, help='per sweep (default 1)')
    parser.add_argument('--max-new-tokens', type=int, default=16, help='per answer (default 16)')
    parser.add_argument('--encoder-backend', default='auto', help='see encoder.backend')
    parser.add_argument(
        '--device', default='auto', help='cpu or cuda (default: a GPU where there is one)'
    )
    parser.add_argument(
        '--threads', type=int, help="CPU threads of the node (default: torch's own less one)"
    )
    parser.add_argument('--json', action='store_true', help='print figures as JSON')
    parser.set_defaults(run=run_node)


def run_node(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    from p2d_node.cli.node_process import drive_node, isolate, play_and_watch

    _check(args)
    config = _config(args)
    # The live table is for people; standard output is for the figures.
    with tempfile.TemporaryDirectory(prefix='p2d-bench-') as name, redirect_stdout(sys.stderr):
        isolate()
        folder = Path(name)
        bag = args.bag or _write_bag(args, folder / 'bag')
        log = folder / 'node.log'
        with drive_node(_parameters(config), folder, log) as process:
            watcher, _ = play_and_watch(bag, process, 1.0, pictures=False)
        timings, answers = watcher.timings[args.warm_up :], watcher.answers
        if not timings:
            said = log.read_text(encoding='utf-8', errors='replace').strip()[-600:]
            raise P2dError(f'no sweep was answered after {args.warm_up}; the node said: {said}')
    report = _to_report(args, config, timings, answers)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.sweeps <= args.warm_up or args.warm_up < 0:
        raise ConfigError(
            f'--sweeps: got {args.sweeps} with --warm-up {args.warm_up}, allowed: more sweeps '
            'than that, and 0 or more for warming up'
        )
    if not 0.0 < args.hz <= 100.0:
        raise ConfigError(f'--hz: got {args.hz:g}, allowed: above 0 to 100')
    if args.questions < 1:
        raise ConfigError(f'--questions: got {args.questions}, allowed: 1 or more')
    if args.threads is not None and args.threads < 1:
        raise ConfigError(f'--threads: got {args.threads}, allowed: 1 or more')
    if args.bag is not None and not args.bag.exists():
        raise ConfigError(f'--bag: got {str(args.bag)!r}, which does not exist')


def _write_bag(args: argparse.Namespace, bag: Path) -> Path:
    from p2d_node.bags.writing import write_bag
    from p2d_node.cli.synthetic import draw_images

    write_bag(draw_images('cruise', args.sweeps, period_ms=1000.0 / args.hz), bag)
    return bag


def _config(args: argparse.Namespace) -> DriveConfig:
    """Return the node's settings, with device and threads by name: the report says them."""
    from p2d_node.checkpoints.devices import choose_device, default_num_threads

    questions = [DEFAULT_QUESTIONS[i % len(DEFAULT_QUESTIONS)] for i in range(args.questions)]
    return DriveConfig(
        **({'model': args.model} if args.model else {}),
        device=str(choose_device(args.device)),
        num_threads=default_num_threads() if args.threads is None else args.threads,
        retention_ratio=dict.fromkeys(DriveConfig().cameras, args.retention_ratio),
        max_new_tokens=args.max_new_tokens,
        questions=tuple(questions),
        encoder=EncoderConfig(backend=args.encoder_backend),
    )


def _parameters(config: DriveConfig) -> dict[str, Any]:
    return {
        'model': config.model,
        'device': config.device,
        'num_threads': config.num_threads,
        'retention_ratio': dict(config.retention_ratio),
        'max_new_tokens': config.max_new_tokens,
        'questions': list(config.questions),
        'encoder': {'backend': config.encoder.backend},
    }


def _to_report(
    args: argparse.Namespace, config: DriveConfig, timings: list[Any], answers: list[Any]
) -> dict[str, Any]:
    from p2d_node.evaluation.selection_benchmark import describe_machine, percentile
    from p2d_node.records import StageTimes

    stages = {
        stage.name: {
            f'p{round(100 * share)}': percentile([getattr(t, stage.name) for t in timings], share)
            for share in SHARES
        }
        for stage in fields(StageTimes)
    }
    return {
        'benchmark': 'latency of the node, milliseconds per sweep, over DDS on one machine',
        **describe_machine(config.device),
        'torch_threads': config.num_threads,
        'model': answers[-1].model,
        'encoder': answers[-1].encoder,
        'tokens_kept': sum(answers[-1].tokens_kept),
        'tokens_total': sum(answers[-1].tokens_total),
        'questions': args.questions,
        'max_new_tokens': args.max_new_tokens,
        'sweeps_answered': len(timings),
        'warm_up': args.warm_up,
        'stages': stages,
    }


def _print(report: dict[str, Any]) -> None:
    from p2d_node.cli.bench_table import print_figures

    rows = [
        (stage.removesuffix('_ms'), *(f'{value:.1f}' for value in values.values()))
        for stage, values in report['stages'].items()
    ]
    print_figures(
        ('stage', *(f'p{round(100 * share)}' for share in SHARES)),
        rows,
        title=f'{report["model"]} on {report["encoder"]}: ms per sweep',
        caption=f'{report["tokens_kept"]} of {report["tokens_total"]} tokens, '
        f'{report["questions"]} questions; {report["sweeps_answered"]} sweeps after '
        f'{report["warm_up"]}; {report["device"]}, {report["torch_threads"]} CPU threads',
    )
