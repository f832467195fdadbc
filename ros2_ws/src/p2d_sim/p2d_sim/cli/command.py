"""What the commands share: the parser, the image size, and one line for an error.

`--help` needs neither torch nor OpenCV nor ROS: a command imports them when it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import sys
from typing import Any

from p2d_node.cli.options import with_flags
from p2d_node.errors import ConfigError, P2dError
from p2d_node.library_settings import prepare_libraries

from p2d_sim.cameras import FULL_HEIGHT_PX, FULL_WIDTH_PX

EXIT_BAD_INPUT = 2
INSTALLED = 'ros2_ws/install/p2d_sim/lib/p2d_sim'
"""The folder of the commands, relative to the root of the repository."""


def make_parser(
    name: str, description: str, examples: str, **option_names: str
) -> argparse.ArgumentParser:
    """Return a parser without options.

    Args:
        name: Name of the command.
        description: What the command does.
        examples: Command lines that the help ends with.
        option_names: Parameter to option, where the names differ.
    """
    parser = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=f'{examples}\nIn the environment of make, which has no command ros2, replace\n'
        f'"ros2 run p2d_sim {name}" by\n  tools/run.sh .venv "" {INSTALLED}/{name}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(option_names=option_names)
    return parser


def run_command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None,
) -> int:
    """Parse `arguments`, None: those of the process, and run the command.

    Returns:
        What `run` returns; 2 after one line on standard error if it raises P2dError.
    """
    prepare_libraries()
    args = parser.parse_args(arguments)
    try:
        return run(args)
    except P2dError as err:
        flags = {name: f'--{name.replace("_", "-")}' for name in vars(args)} | args.option_names
        print(f'{parser.prog}: {with_flags(str(err), flags)}', file=sys.stderr)
        return EXIT_BAD_INPUT


def add_value(
    parser: argparse.ArgumentParser, option: str, default: float | str, text: str, **more: Any
) -> None:
    """Add an option with a default.

    Args:
        parser: The parser.
        option: Name of the option; its values have the type of the default.
        default: The default, which the help shows.
        text: Help text.
        more: Further arguments of `add_argument`.
    """
    help_text = f'{text} (default: %(default)s)'
    parser.add_argument(option, type=type(default), default=default, help=help_text, **more)


def add_size(parser: argparse.ArgumentParser) -> None:
    """Add `--size`; read its value with `parse_size`."""
    full = f'{FULL_WIDTH_PX}x{FULL_HEIGHT_PX}'
    add_value(parser, '--size', full, 'size of the images in pixels', metavar='WIDTHxHEIGHT')


def parse_size(text: str) -> dict[str, int]:
    """Return `height` and `width`, pixels.

    Raises:
        ConfigError: The text has another form than `800x450`.
    """
    width, _, height = text.partition('x')
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f'size: got {text!r}, allowed: WIDTHxHEIGHT, e.g. 800x450')
    return {'height': int(height), 'width': int(width)}
