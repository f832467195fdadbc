"""`p2d make-bag`: a rosbag2 of six cameras from DriveLM, from nuScenes, or from the simulator."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import json
from pathlib import Path

from p2d_node.bags.drivelm import read_drivelm_images
from p2d_node.bags.nuscenes import NuscenesSelection, read_nuscenes_images
from p2d_node.bags.records import BagImage
from p2d_node.bags.writing import ENCODINGS, STORAGES, write_bag
from p2d_node.cli.synthetic import draw_images
from p2d_node.errors import ConfigError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

EXAMPLE = """example:
  p2d make-bag --drivelm v1_1_train_nus.json --images nuscenes --out keyframes
  p2d make-bag --nuscenes nuscenes --scene scene-0061 --out scene-0061
  p2d make-bag --synthetic lead-brakes --sweeps 120 --out drive
  ros2 bag play scene-0061 --clock
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        'make-bag',
        help='make a rosbag2 of six cameras from DriveLM or nuScenes files, or a synthetic one',
        description='Makes a rosbag2 with images and CameraInfo at their true capture stamps.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--drivelm', type=Path, metavar='JSON', help="DriveLM's questions file")
    source.add_argument('--nuscenes', type=Path, metavar='ROOT', help='root of the nuScenes data')
    source.add_argument(
        '--synthetic', metavar='SCENARIO', help='draw a drive, e.g. lead-brakes (needs p2d_sim)'
    )
    parser.add_argument(
        '--images', type=Path, metavar='ROOT', help='folder of samples/, for --drivelm'
    )
    parser.add_argument('--version', default='', help='nuScenes tables, e.g. v1.0-mini')
    parser.add_argument('--scene', default='', help='nuScenes scene, e.g. scene-0061; else all')
    parser.add_argument(
        '--keyframes-only', action='store_true', help='leave out the sweeps between keyframes'
    )
    parser.add_argument(
        '--sweeps', type=int, default=120, help='length of a synthetic drive (default: 120)'
    )
    parser.add_argument('--seed', type=int, default=0, help='of a synthetic drive (default: 0)')
    parser.add_argument('--out', type=Path, required=True, metavar='BAG', help='folder to create')
    parser.add_argument(
        '--storage', default='mcap', choices=tuple(STORAGES), help='file format (default: mcap)'
    )
    parser.add_argument(
        '--encoding',
        default='jpeg',
        choices=ENCODINGS,
        help='jpeg keeps the files as they are; bgr8 writes raw images (default: jpeg)',
    )
    parser.add_argument('--json', action='store_true', help='print the result as JSON')
    names = {'bag': '--out', 'scenario': '--synthetic'}
    parser.set_defaults(run=run, option_names=names)


def run(args: argparse.Namespace) -> int:
    """Write the bag and say what is in it."""
    columns = (SpinnerColumn(), TextColumn('{task.completed} images'), TimeElapsedColumn())
    console = Console(stderr=True)
    silent = args.json or not console.is_terminal
    with Progress(*columns, transient=True, console=console, disable=silent) as progress:
        task = progress.add_task('write', total=None)

        def counted() -> Iterator[BagImage]:
            for image in _images(args):
                yield image
                progress.advance(task)

        count = write_bag(counted(), args.out, storage=args.storage, encoding=args.encoding)
    result = {'bag': str(args.out), 'images': count, 'storage': args.storage}
    print(json.dumps(result) if args.json else f'{args.out}: {count} images ({args.storage})')
    return 0


def _images(args: argparse.Namespace) -> Iterator[BagImage]:
    if args.synthetic is not None:
        if args.sweeps < 1:
            raise ConfigError(f'--sweeps: got {args.sweeps}, allowed: 1 or more')
        return draw_images(args.synthetic, args.sweeps, seed=args.seed)
    if args.drivelm is None:
        selection = NuscenesSelection(
            version=args.version, scene=args.scene, keyframes_only=args.keyframes_only
        )
        return read_nuscenes_images(args.nuscenes, selection)
    if args.images is None:
        raise ConfigError('--images is missing: with --drivelm name the folder of samples/')
    return read_drivelm_images(args.drivelm, args.images)
