"""The command `p2d`: one verb per module; bad input ends in one line and exit code 2."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import sys

from p2d_node import __version__
from p2d_node.cli import (
    bench,
    demo,
    engines,
    evaluate,
    import_checkpoint,
    make_bag,
    replay,
    tune_ratios,
    watch,
)
from p2d_node.cli.option_names import name_options
from p2d_node.errors import P2dError

VERBS = (
    bench,
    demo,
    engines,
    evaluate,
    import_checkpoint,
    make_bag,
    replay,
    tune_ratios,
    watch,
)

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    """Return the parser with all verbs."""
    parser = argparse.ArgumentParser(
        prog='p2d', description='Driving answers from six cameras with few visual tokens.'
    )
    parser.add_argument('--version', action='version', version=f'p2d_node {__version__}')
    subparsers = parser.add_subparsers(dest='verb', required=True, metavar='VERB')
    for verb in VERBS:
        verb.add_parser(subparsers)
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run `p2d`; returns the exit status."""
    parsed = make_parser().parse_args(args)
    try:
        return int(parsed.run(parsed))
    except P2dError as err:
        print(f'p2d {parsed.verb}: {name_options(str(err), parsed)}', file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == '__main__':
    sys.exit(main())
