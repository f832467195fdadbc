"""The command that writes a scenario as a nuScenes-format folder with DriveLM's questions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import sys

from p2d_node.errors import P2dError
from rich.progress import Progress

from p2d_sim.cameras import FULL_HEIGHT_PX, FULL_WIDTH_PX
from p2d_sim.nuscenes_folder import FolderOptions, VERSION, write_nuscenes_folder
from p2d_sim.scenarios import DURATION_S, SCENARIOS

EXAMPLE = """examples:
  world --out synthetic --scenario lead-brakes --scenario cut-in
  world --out tuning --random-scenes 60 --duration 0.5 --seed 1100000000
  p2d make-bag --nuscenes synthetic --out bag
  p2d make-bag --drivelm synthetic/drivelm.json --images synthetic --out keyframes
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder; returns the exit code."""
    args = _parser().parse_args(argv)
    width, _, height = args.size.partition('x')
    if not (width.isdigit() and height.isdigit()):
        print(
            f'world: --size: got {args.size!r}, allowed: WIDTHxHEIGHT, e.g. 800x450',
            file=sys.stderr,
        )
        return 2
    count = 0
    try:
        options = FolderOptions(
            scenarios=tuple(args.scenario or (() if args.random_scenes else SCENARIOS)),
            random_scenes=args.random_scenes,
            seed=args.seed,
            duration_s=args.duration,
            height=int(height),
            width=int(width),
        )
        silent = args.json or not sys.stdout.isatty()
        with Progress(transient=True, disable=silent) as bar:
            task = bar.add_task('draw', total=None)
            for count in write_nuscenes_folder(args.out, options):
                bar.update(task, completed=count)
    except P2dError as err:
        print(f'world: {err}', file=sys.stderr)
        return 2
    result = {'folder': str(args.out), 'version': VERSION, 'images': count}
    print(json.dumps(result) if args.json else f'{args.out}: {count} images ({VERSION})')
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='world',
        description='Writes synthetic drives as a nuScenes-format folder, with drivelm.json.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--out', type=Path, required=True, help='folder to create')
    parser.add_argument(
        '--scenario', action='append', choices=tuple(SCENARIOS), help='may be repeated; else all'
    )
    parser.add_argument(
        '--random-scenes',
        type=int,
        default=0,
        metavar='N',
        help='streets as p2d-mini is trained on, instead of or after the scenarios; training '
        'never reaches seeds from 1000000000 on',
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--duration', type=float, default=DURATION_S, help='seconds per scene')
    parser.add_argument(
        '--size', default=f'{FULL_WIDTH_PX}x{FULL_HEIGHT_PX}', help='WIDTHxHEIGHT in pixels'
    )
    parser.add_argument('--json', action='store_true', help='print the result as JSON')
    return parser


if __name__ == '__main__':
    raise SystemExit(main())
