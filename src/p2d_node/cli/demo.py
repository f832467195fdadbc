"""`p2d demo`: a bag, the node in its own process, replay over DDS, a live table, a report."""

from __future__ import annotations

import argparse
from pathlib import Path
import signal
import tempfile
from typing import Any

from p2d_node.bags.drivelm import read_drivelm_images
from p2d_node.bags.records import BagImage
from p2d_node.bags.writing import write_bag
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.model_folder import model_folder
from p2d_node.cli.demo_report import (
    write_answers,
    write_latency_plot,
    write_picture,
    write_story,
)
from p2d_node.cli.node_process import drive_node, isolate, play_and_watch
from p2d_node.cli.synthetic import draw_images
from p2d_node.config import DriveConfig, SHIPPED_MODEL
from p2d_node.durable_files import write_faults
from p2d_node.errors import ConfigError, P2dError

EXAMPLE = """example:
  p2d demo
  p2d demo --model checkpoints/llava-onevision-0.5b --retention 0.25 --out demo_output
"""
ANSWER_FILE = 'answers.jsonl'
LOG_FILE = 'node.log'
STORY_FILE = 'story.png'
OUTPUT_FILES = (ANSWER_FILE, STORY_FILE, 'kept_tokens.png', 'latency.png', LOG_FILE)
REFERENCE_CAMERA = DriveConfig().sync.reference_camera

SCENARIO = 'lead-brakes'
NUM_SWEEPS = 10
PERIOD_MS = 1000.0
"""The vehicle ahead brakes after six seconds."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        'demo',
        help='see the node answer from six cameras',
        description=(
            'Plays six cameras to the drive node and shows its answers: a drawn drive in which '
            'the vehicle ahead brakes, or the real nuScenes keyframes of --sample.'
        ),
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--sample', type=Path, metavar='DIR', help='folder of drivelm_sample.json and samples/'
    )
    parser.add_argument('--seed', type=int, default=0, help='of the drawn drive (default: 0)')
    parser.add_argument(
        '--model', default=SHIPPED_MODEL, help=f'checkpoint folder (default: {SHIPPED_MODEL})'
    )
    parser.add_argument(
        '--retention', type=float, help='for all cameras (default: as tuned for the model, or 0.1)'
    )
    parser.add_argument('--max-new-tokens', type=int, default=16, help='per answer (default: 16)')
    parser.add_argument('--rate', type=float, default=1.0, help='speed of the replay')
    parser.add_argument('--out', type=Path, default=Path('demo_output'), help='folder of results')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 if every sweep that was played got its answers."""
    # Asked for with SIGTERM, too, the node must not be left behind.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    _check(args)
    _prepare_output(args.out)
    isolate()
    with tempfile.TemporaryDirectory(prefix='p2d-demo-') as folder:
        bag = Path(folder) / 'bag'
        images = _demo_images(args)
        num_sweeps = write_bag(images, bag) // len(DriveConfig().cameras)
        with drive_node(_parameters(args), Path(folder), args.out / LOG_FILE) as node:
            watcher, played = play_and_watch(bag, node, args.rate, pictures=True)
    front = {i.stamp_ns: i.jpeg for i in images if i.camera == REFERENCE_CAMERA}
    write_story(front, watcher.answers, args.out / STORY_FILE)
    return _report(args.out, watcher, num_sweeps, complete=played)


def _check(args: argparse.Namespace) -> None:
    DriveConfig(retention_ratio=_ratios(args), max_new_tokens=args.max_new_tokens)
    with model_folder(args.model) as folder:
        open_checkpoint(folder)
    if not 0.0 < args.rate <= 100.0:
        raise ConfigError(f'--rate: got {args.rate:g}, allowed: above 0 to 100')
    if args.sample is not None and not (args.sample / 'drivelm_sample.json').is_file():
        raise ConfigError(f'--sample: {args.sample} has no drivelm_sample.json')


def _prepare_output(out: Path) -> None:
    """Remove an earlier demo's files; anything else is not ours to touch.

    Raises:
        ConfigError: No files can be written there.
    """
    with write_faults(f'--out: {out}', 'name another folder'):
        out.mkdir(parents=True, exist_ok=True)
        for name in OUTPUT_FILES:
            (out / name).unlink(missing_ok=True)
        (out / LOG_FILE).touch()


def _demo_images(args: argparse.Namespace) -> list[BagImage]:
    if args.sample is not None:
        print('cameras: real nuScenes keyframes (CC BY-NC-SA 4.0, Motional)')
        return list(read_drivelm_images(args.sample / 'drivelm_sample.json', args.sample))
    print(f'cameras: drawn, scenario {SCENARIO}')
    return list(draw_images(SCENARIO, NUM_SWEEPS, period_ms=PERIOD_MS, seed=args.seed))


def _parameters(args: argparse.Namespace) -> dict[str, Any]:
    parameters = {'model': args.model, 'max_new_tokens': args.max_new_tokens}
    if args.retention is not None:
        parameters['retention_ratio'] = _ratios(args)
    return parameters


def _ratios(args: argparse.Namespace) -> dict[str, float]:
    return {} if args.retention is None else dict.fromkeys(DriveConfig().cameras, args.retention)


def _report(out: Path, watcher: Any, num_sweeps: int, *, complete: bool) -> int:
    answers, timings = watcher.answers, watcher.timings
    if not answers:
        log = (out / LOG_FILE).read_text(encoding='utf-8', errors='replace').strip()
        raise P2dError(f'the node gave no answer; its last words: {log[-600:] or "none"}')
    write_answers(answers, out / ANSWER_FILE)
    write_latency_plot(
        timings, f'{answers[-1].model} on {answers[-1].encoder}', out / 'latency.png'
    )
    if watcher.picture is not None:
        write_picture(watcher.picture, out / 'kept_tokens.png')
    print(f'{len(answers)} answers about {len(timings)} of {num_sweeps} sweeps: {out}/')
    if 'untrained' in answers[-1].model:
        print('The model is untrained (random weights): its answers are random words.')
    return 0 if complete else 1
