"""The command `p2d`: parses a verb and its options, runs it, reports bad input in one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import errno
import os
import sys

from p2d_node import __version__
from p2d_node.cli.termination import end_as_by_ctrl_c
from p2d_node.cli.verb import add_verbs, EXIT_BAD_INPUT, Parser
from p2d_node.cli.verbs import overview, VERBS
from p2d_node.errors import P2dError
from p2d_node.library_settings import prepare_libraries
from p2d_node.memory_limit import is_out_of_memory, limited_memory, SHARE

EXIT_INTERRUPTED = 130

EXIT_NO_MEMORY = 1
EXIT_NO_OUTPUT = 1
OUTPUT_FAULTS = (errno.EPIPE, errno.ENOSPC)
"""The reader of the output has ended, as `head` does, or its disk is full."""

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
    if not parsed.verb.ends_with_ros:
        end_as_by_ctrl_c()
    with limited_memory() as limit_bytes:
        try:
            return _run(parsed)
        except Exception as err:
            if not is_out_of_memory(err):
                raise
        # Out of the handler, whose error keeps what the verb had read.
        print(
            f'{parsed.parser.prog}: needs more than {limit_bytes / 2**30:.1f} GiB of memory, '
            f'which is {SHARE:.0%} of what was free, or the limit of `ulimit -d`; give it less '
            'or smaller data, end other programs, or raise the limit with `ulimit -Sd KIB`',
            file=sys.stderr,
        )
        return EXIT_NO_MEMORY


def _run(parsed: argparse.Namespace) -> int:
    try:
        status = int(parsed.verb(parsed))
        sys.stdout.flush()
        return status
    except P2dError as err:
        print(f'{parsed.parser.prog}: {err}', file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as err:
        if err.errno not in OUTPUT_FAULTS or err.filename is not None:
            raise
        _discard_output()
        print(f'{parsed.parser.prog}: standard output: {err.strerror}', file=sys.stderr)
        return EXIT_NO_OUTPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _discard_output() -> None:
    """Let Python write what is left to nowhere when it ends; it would raise the error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == '__main__':
    sys.exit(main())
