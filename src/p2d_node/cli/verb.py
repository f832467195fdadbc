"""A verb of `p2d`: its options, its help, and the function that runs it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import importlib
from typing import Any, NoReturn

from p2d_node.cli.options import (
    add_options,
    flags_of,
    given_flags,
    make_options,
    Options,
    with_flags,
)
from p2d_node.errors import P2dError

EXIT_BAD_INPUT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One verb, declared without importing what it runs.

    Attributes:
        name: As typed.
        help: One line for the list of verbs.
        examples: Commands for the end of `--help`.
        options: The class of its options.
        run: Function that takes an object of that class and returns the exit code, as
            `module:function`. The module is imported when the verb runs.
        description: Begins `--help`; empty: `help` as a sentence.
    """

    name: str
    help: str
    examples: str
    options: type[Options]
    run: str
    description: str = ''

    def __call__(self, parsed: argparse.Namespace) -> int:
        """Run with parsed arguments; returns the exit code.

        Raises:
            P2dError: Its message names options as the user types them.
        """
        with _flags_in_errors(flags_of(self.options)):
            options = make_options(self.options, parsed)
        with _flags_in_errors(given_flags(options)):
            return int(self.load()(options))

    def load(self) -> Any:
        """Import and return the function that runs this verb."""
        module, _, function = self.run.partition(':')
        return getattr(importlib.import_module(module), function)


@contextmanager
def _flags_in_errors(flags: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except P2dError as err:
        err.args = (with_flags(str(err), flags),)
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class VerbGroup:
    """A verb that has verbs of its own, such as `bench`.

    Attributes:
        name: As typed.
        help: One line for the list of verbs.
        examples: Commands for the end of `--help`.
        verbs: Its verbs.
        description: Begins `--help`; empty: `help` as a sentence.
    """

    name: str
    help: str
    examples: str
    verbs: tuple[Verb, ...]
    description: str = ''


class Parser(argparse.ArgumentParser):
    """A parser that reports bad input in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        text = message.removeprefix('argument ')
        self.exit(EXIT_BAD_INPUT, f'{self.prog}: {text}; see {self.prog} --help\n')


def add_verbs(parser: Parser, verbs: Iterable[Verb | VerbGroup]) -> None:
    """Add a subparser for each verb; what is parsed gets the attributes `verb` and `parser`."""
    subparsers = parser.add_subparsers(required=True, metavar='VERB')
    for verb in verbs:
        child = subparsers.add_parser(
            verb.name,
            help=verb.help,
            description=verb.description or f'{verb.help[0].upper()}{verb.help[1:]}.',
            epilog=verb.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if isinstance(verb, VerbGroup):
            add_verbs(child, verb.verbs)
        else:
            add_options(child, verb.options)
            child.set_defaults(verb=verb, parser=child)
