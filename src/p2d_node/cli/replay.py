"""`p2d replay`: plays a rosbag2 over DDS where there is no `ros2 bag`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import sys

EXAMPLE = """example:
  p2d replay --bag scene-0061 --rate 0.5 --loop --clock
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        'replay',
        help='play a rosbag2',
        description='Plays a rosbag2 over DDS, reliable, with the shipped transport profile.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--bag', type=Path, required=True, help='folder of the rosbag2')
    parser.add_argument('--rate', type=float, default=1.0, help='speed (default: 1.0)')
    parser.add_argument('--loop', action='store_true', help='start again at the end')
    parser.add_argument('--clock', action='store_true', help='publish the time on /clock')
    parser.add_argument(
        '--wait',
        type=float,
        default=10.0,
        metavar='S',
        help='longest wait for subscribers to all image topics (default: 10)',
    )
    parser.add_argument('--duration', type=float, metavar='S', help='stop after this long')
    parser.add_argument('--json', action='store_true', help='print the result as JSON')
    names = {'wait_s': '--wait', 'duration_s': '--duration'}
    parser.set_defaults(run=run, option_names=names)


def run(args: argparse.Namespace) -> int:
    """Play until the end, Ctrl-C, or `--duration`."""
    from p2d_node.ros.playback import play_bag
    from p2d_node.ros.replay import check_duration, ReplayOptions

    check_duration(args.duration)
    options = ReplayOptions(rate=args.rate, loop=args.loop, clock=args.clock, wait_s=args.wait)
    result = play_bag(args.bag, options, duration_s=args.duration)
    if not result.all_subscribed:
        print('p2d replay: not every image topic has a subscriber', file=sys.stderr)
    if args.json:
        print(json.dumps({'bag': str(args.bag), 'messages': result.num_published}))
    else:
        print(f'{args.bag}: {result.num_published} messages published')
    return 0
