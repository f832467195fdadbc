"""`p2d demo`: a bag, the node in its own process, replay over DDS, a live table, a report."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from p2d_node.bags.drivelm import read_drivelm_images
from p2d_node.bags.generated import generate_images
from p2d_node.bags.reading import BagReader
from p2d_node.bags.writing import write_bag
from p2d_node.cli.demo_report import write_answers, write_latency_plot, write_picture
from p2d_node.cli.watch import LiveTable, REFRESH_S
from p2d_node.config import DriveConfig, UNTRAINED_MODEL
from p2d_node.errors import ConfigError, P2dError
from p2d_node.language_model.checkpoint import open_checkpoint
import yaml

EXAMPLE = """example:
  p2d demo
  p2d demo --model checkpoints/llava-onevision-0.5b --retention 0.25 --out demo_output
"""
ANSWER_FILE = 'answers.jsonl'
OUTPUT_FILES = (ANSWER_FILE, 'kept_tokens.png', 'latency.png', 'node.log')

GENERATED_SWEEPS = 6
GENERATED_PERIOD_MS = 1500.0
SUBSCRIBE_TIMEOUT_S = 300.0
"""A large checkpoint takes its time to load."""

LAST_ANSWER_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 4.0
DEMO_DOMAINS = range(1, 101)
"""ROS domains with ports that no system uses otherwise."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        'demo',
        help='see the node answer from six cameras',
        description=(
            'Plays six cameras to the drive node and shows its answers. Real nuScenes keyframes '
            'are used where --sample has them, else generated pictures.'
        ),
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--sample',
        type=Path,
        metavar='DIR',
        help='drivelm_sample.json and samples/ (default: ../shared/nuscenes_sample, if there)',
    )
    parser.add_argument(
        '--generated', action='store_true', help='use generated pictures in any case'
    )
    parser.add_argument('--model', default=UNTRAINED_MODEL, help='checkpoint folder')
    parser.add_argument('--retention', type=float, default=0.1, help='per camera (default: 0.1)')
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
    _isolate()
    with tempfile.TemporaryDirectory(prefix='p2d-demo-') as folder:
        bag = Path(folder) / 'bag'
        num_sweeps = _write_demo_bag(args, bag)
        with _drive_node(args, Path(folder)) as node:
            watcher, played = _play_and_watch(bag, node, args.rate)
    return _report(args.out, watcher, num_sweeps, complete=played)


def _check(args: argparse.Namespace) -> None:
    DriveConfig(retention_ratio={'CAM_FRONT': args.retention}, max_new_tokens=args.max_new_tokens)
    if args.model != UNTRAINED_MODEL:
        open_checkpoint(args.model)
    if not 0.0 < args.rate <= 100.0:
        raise ConfigError(f'--rate: got {args.rate:g}, allowed: above 0 to 100')
    if args.sample is not None and not (args.sample / 'drivelm_sample.json').is_file():
        raise ConfigError(f'--sample: {args.sample} has no drivelm_sample.json')


def _prepare_output(out: Path) -> None:
    """Remove an earlier demo's files; anything else is not ours to touch."""
    out.mkdir(parents=True, exist_ok=True)
    for name in OUTPUT_FILES:
        (out / name).unlink(missing_ok=True)


def _isolate() -> None:
    """Keep the demo to this machine and away from other ROS nodes on it."""
    os.environ.setdefault('ROS_DOMAIN_ID', str(DEMO_DOMAINS[os.getpid() % len(DEMO_DOMAINS)]))
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    print(f'ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]} (to look with rqt or ros2 topic echo)')


def _write_demo_bag(args: argparse.Namespace, bag: Path) -> int:
    """Write the bag and return its number of sweeps."""
    default = Path(__file__).resolve().parents[4] / 'shared' / 'nuscenes_sample'
    folder = args.sample or default
    if (folder / 'drivelm_sample.json').is_file() and not args.generated:
        print('cameras: real nuScenes keyframes (CC BY-NC-SA 4.0, Motional)')
        images = read_drivelm_images(folder / 'drivelm_sample.json', folder)
    else:
        print('cameras: generated pictures')
        images = generate_images(GENERATED_SWEEPS, period_ms=GENERATED_PERIOD_MS)
    return write_bag(images, bag) // len(DriveConfig().cameras)


@contextmanager
def _drive_node(args: argparse.Namespace, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the drive node in a process of its own; it is gone when the block is left."""
    from p2d_node.ros.dds_profile import use_shipped_profiles

    use_shipped_profiles()
    parameters = {
        'model': args.model,
        'max_new_tokens': args.max_new_tokens,
        'use_sim_time': True,
        # Keyframes are seconds apart: a busy machine may take its time to receive one.
        'sync': {'deadline_ms': 1000.0},
        'retention_ratio': dict.fromkeys(DriveConfig().cameras, args.retention),
    }
    file = folder / 'demo.yaml'
    file.write_text(yaml.safe_dump({'/**': {'ros__parameters': parameters}}), encoding='utf-8')
    command = [sys.executable, '-m', 'p2d_node.ros.drive_node', '--ros-args']
    with (args.out / 'node.log').open('wb') as log:
        process = subprocess.Popen(
            [*command, '--params-file', str(file)],
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C on the terminal goes to us alone; we stop the node in order.
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGINT, signal.SIGKILL):
        process.send_signal(sign)
        try:
            process.wait(STOP_TIMEOUT_S)
            return
        except subprocess.TimeoutExpired:
            continue


def _play_and_watch(
    bag: Path, node_process: subprocess.Popen[bytes], rate: float
) -> tuple[Any, bool]:
    """Play the bag and show the answers; returns the watcher and whether all were answered."""
    from p2d_node.ros.answer_watcher import AnswerWatcher
    from p2d_node.ros.replay import Replayer, ReplayOptions
    from p2d_node.ros.spinning import spinning_node

    stop = threading.Event()
    with BagReader(bag) as reader, spinning_node('p2d_demo') as node:
        watcher = AnswerWatcher(node, pictures=True)
        options = ReplayOptions(rate=rate, clock=True, wait_s=SUBSCRIBE_TIMEOUT_S)
        replayer = Replayer(node, reader, options)
        last_ns = reader.start_ns + reader.duration_ns

        def must_stop() -> bool:
            return stop.is_set() or node_process.poll() is not None

        def play() -> None:
            if replayer.wait_for_subscribers(must_stop):
                replayer.play(must_stop)

        player = threading.Thread(target=play, name='replay', daemon=True)
        player.start()
        try:
            with LiveTable(watcher) as table:
                answered = _wait_for_answers(watcher, player, node_process, last_ns, table)
        finally:
            stop.set()
            player.join(timeout=STOP_TIMEOUT_S)
    return watcher, answered


def _wait_for_answers(
    watcher: Any,
    player: threading.Thread,
    node_process: subprocess.Popen[bytes],
    last_ns: int,
    table: LiveTable,
) -> bool:
    """Show answers until the sweep at `last_ns` is answered or nothing more can come."""
    sweep_ns = 100_000_000  # the reference camera exposes at most this long before the last one
    end_s: float | None = None
    while node_process.poll() is None:
        table.update()
        timings = watcher.timings
        if timings and watcher.picture is not None:
            stamp = timings[-1].header.stamp
            if stamp.sec * 1_000_000_000 + stamp.nanosec >= last_ns - sweep_ns:
                return True
        if not player.is_alive():
            end_s = end_s or time.monotonic() + LAST_ANSWER_TIMEOUT_S
            if time.monotonic() >= end_s:
                return False
        time.sleep(REFRESH_S)
    return False


def _report(out: Path, watcher: Any, num_sweeps: int, *, complete: bool) -> int:
    answers, timings = watcher.answers, watcher.timings
    if not answers:
        log = (out / 'node.log').read_text(encoding='utf-8', errors='replace').strip()
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
