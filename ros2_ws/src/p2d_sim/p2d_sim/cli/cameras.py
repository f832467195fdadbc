"""The command that publishes a scenario as six live camera topics with CameraInfo."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import sys

from p2d_sim.cli.command import add_size, add_value, make_parser, parse_size, run_command
from p2d_sim.publisher_options import PublisherOptions, TRANSPORTS
from p2d_sim.scenarios import SCENARIOS

EXAMPLES = """examples:
  ros2 run p2d_sim cameras --scenario lead-brakes
  ros2 run p2d_sim cameras --scenario pedestrian-crosses --rate 4 --size 800x450
  ros2 run p2d_sim cameras --transport raw --jitter-ms 20 --loss 0.05
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Publish as the command line says; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)

    def run(args: argparse.Namespace) -> int:
        return _run(args, arguments)

    return run_command(_parser(), run, _without_ros_arguments(arguments))


def _without_ros_arguments(arguments: list[str]) -> list[str]:
    if '--ros-args' not in arguments:
        return arguments
    from rclpy.utilities import remove_ros_args

    return list(remove_ros_args(['cameras', *arguments])[1:])


def _run(args: argparse.Namespace, ros_arguments: Sequence[str]) -> int:
    options = PublisherOptions(
        scenario=args.scenario,
        seed=args.seed,
        rate_hz=args.rate,
        transport=args.transport,
        jitter_ms=args.jitter_ms,
        loss=args.loss,
        duration_s=args.duration,
        **parse_size(args.size),
    )
    from p2d_sim.publisher import publish

    publish(options, ros_arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    default = PublisherOptions()
    parser = make_parser(
        'cameras',
        'Publishes a synthetic drive as six camera topics with CameraInfo.',
        EXAMPLES,
        rate_hz='--rate',
        duration_s='--duration',
    )
    names = tuple(SCENARIOS)
    add_value(parser, '--scenario', default.scenario, 'what happens on the road', choices=names)
    add_value(parser, '--seed', default.seed, 'seed of surroundings, delays and losses')
    add_value(
        parser,
        '--rate',
        default.rate_hz,
        'sweeps per second; for another rate than the default set cameras.<CAMERA>.rate_hz of the '
        'drive node',
        metavar='HZ',
    )
    add_value(
        parser, '--transport', default.transport, 'JPEG or raw bgr8 images', choices=TRANSPORTS
    )
    add_size(parser)
    add_value(
        parser, '--jitter-ms', default.jitter_ms, 'largest random delay of a frame', metavar='MS'
    )
    add_value(parser, '--loss', default.loss, 'probability that a frame is not sent', metavar='P')
    parser.add_argument(
        '--duration',
        type=float,
        metavar='S',
        help='stop after this many seconds (default: publish until Ctrl-C)',
    )
    return parser


if __name__ == '__main__':
    raise SystemExit(main())
