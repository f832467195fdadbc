"""The command `p2d`: parses a verb and its options, runs it, reports bad input in one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import sys

from p2d_node import __version__
from p2d_node.cli.verb import add_verbs, EXIT_BAD_INPUT, Parser
from p2d_node.cli.verbs import overview, VERBS
from p2d_node.errors import P2dError
from p2d_node.library_settings import prepare_libraries

EXIT_INTERRUPTED = 130

# At import, as worker processes import this module and call no main.
prepare_libraries()


def make_parser() -> Parser:
    """Return the parser with all verbs."""
    parser = Parser(
        prog='p2d',
        description='Driving answers from six cameras with few visual tokens.',
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'p2d_node {__version__}')
    add_verbs(parser, VERBS, listed=False)
    return parser


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the attribute `verb` of the result runs it.

    Raises:
        SystemExit: Bad input, which has been reported, or `--help`.
    """
    parsed, unknown = make_parser().parse_known_args(words)
    if unknown:
        parsed.parser.error(f'unrecognized arguments: {" ".join(unknown)}')
    return parsed


def main(words: Sequence[str] | None = None) -> int:
    """Run `p2d`; returns the exit status."""
    parsed = parse(words)
    try:
        return int(parsed.verb(parsed))
    except P2dError as err:
        print(f'{parsed.parser.prog}: {err}', file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == '__main__':
    sys.exit(main())
