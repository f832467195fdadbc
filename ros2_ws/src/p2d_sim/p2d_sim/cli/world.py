"""The command that writes a nuScenes-format folder with DriveLM's questions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import sys

from rich.progress import Progress

from p2d_sim.cli.command import add_size, add_value, make_parser, parse_size, run_command
from p2d_sim.scenarios import DURATION_S, SCENARIOS

EXAMPLES = """examples:
  ros2 run p2d_sim world --out synthetic --scenario lead-brakes --scenario cut-in
  ros2 run p2d_sim world --out tuning --random-scenes 60 --duration 0.5 --seed 1100000000
  p2d make-bag --nuscenes synthetic --out bag
  p2d make-bag --drivelm synthetic/drivelm.json --images synthetic --out keyframes
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder; returns the exit code."""
    return run_command(_parser(), _run, argv)


def _run(args: argparse.Namespace) -> int:
    from p2d_sim.nuscenes_folder import FolderOptions, VERSION, write_nuscenes_folder

    options = FolderOptions(
        scenarios=tuple(args.scenario or (() if args.random_scenes else SCENARIOS)),
        random_scenes=args.random_scenes,
        seed=args.seed,
        duration_s=args.duration,
        **parse_size(args.size),
    )
    count = 0
    silent = args.json or not sys.stdout.isatty()
    with Progress(transient=True, disable=silent) as bar:
        task = bar.add_task('images', total=None)
        for count in write_nuscenes_folder(args.out, options):
            bar.update(task, completed=count)
    result = {'folder': str(args.out), 'version': VERSION, 'images': count}
    print(json.dumps(result) if args.json else f'{args.out}: {count} images ({VERSION})')
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        'world',
        'Writes synthetic drives as a nuScenes-format folder with drivelm.json.',
        EXAMPLES,
        root='--out',
        scenarios='--scenario',
        duration_s='--duration',
    )
    parser.add_argument('--out', type=Path, required=True, help='folder to create')
    parser.add_argument(
        '--scenario',
        action='append',
        choices=tuple(SCENARIOS),
        help='scenario to write as one scene; may be given several times (default: every '
        'scenario, or none with --random-scenes)',
    )
    add_value(
        parser,
        '--random-scenes',
        0,
        'number of random scenes after the scenarios, as p2d-mini is trained on; with a --seed of '
        '1000000000 or more they are scenes that p2d-mini has never seen',
        metavar='N',
    )
    add_value(parser, '--seed', 0, 'seed of the first scene; the next scenes have the next seeds')
    text = 'seconds per scene, with two keyframes each second'
    add_value(parser, '--duration', DURATION_S, text, metavar='S')
    add_size(parser)
    parser.add_argument('--json', action='store_true', help='print the result as JSON')
    return parser


if __name__ == '__main__':
    raise SystemExit(main())
