"""A verb of `p2d`: its options, its help, and the function that runs it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import importlib
import textwrap
from typing import Any, NoReturn

from p2d_node.cli.options import (
    add_options,
    flags_in_errors,
    flags_of,
    make_options,
    Options,
    with_flags,
)
from p2d_node.errors import BackendUnavailableError, one_line, P2dError
from p2d_node.evaluation.url_secrets import mask_secrets
from p2d_node.ros.missing_package import explain_missing_package, ROS_PACKAGES

EXIT_BAD_INPUT = 2
HELP_WIDTH = 79


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One verb, declared without importing what it runs.

    Attributes:
        name: As typed.
        help: One line for the list of verbs.
        examples: Commands for the end of `--help`.
        options: The class of its options; its docstring describes the verb.
        run: Function that takes an object of that class and returns the exit code, as
            `module:function`. The module is imported when the verb runs.
        ends_with_ros: Whether it runs until the context of ROS is shut down, as by SIGTERM.
    """

    name: str
    help: str
    examples: str
    options: type[Options]
    run: str
    ends_with_ros: bool = False

    @property
    def description(self) -> str:
        """Text at the begin of `--help`, one line."""
        return ' '.join((self.options.__doc__ or self.help).split())

    def __call__(self, parsed: argparse.Namespace) -> int:
        """Run with parsed arguments; returns the exit code.

        Raises:
            P2dError: Its message names options as the user types them.
        """
        with _flags_in_errors(flags_of(self.options)):
            options = make_options(self.options, parsed)
        with _flags_in_errors(flags_in_errors(options)), _without_ros():
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
        description: Text at the begin of `--help`.
        examples: Commands for the end of `--help`.
        verbs: Its verbs.
    """

    name: str
    help: str
    description: str
    examples: str
    verbs: tuple[Verb, ...]


@contextmanager
def _without_ros() -> Iterator[None]:
    """Say what to do where a package of ROS is missing."""
    try:
        yield
    except ModuleNotFoundError as err:
        package = (err.name or '').partition('.')[0]
        if package not in ROS_PACKAGES:
            raise
        raise BackendUnavailableError(explain_missing_package(package)) from err


class Parser(argparse.ArgumentParser):
    """A parser that reports bad input in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        text = mask_secrets(one_line(message.removeprefix('argument ')))
        self.exit(EXIT_BAD_INPUT, f'{self.prog}: {text}; see {self.prog} --help\n')


def add_verbs(parser: Parser, verbs: Iterable[Verb | VerbGroup], *, listed: bool = True) -> None:
    """Add a subparser for each verb; what is parsed gets the attributes `verb` and `parser`.

    Args:
        parser: The parser of `p2d` or of a group.
        verbs: Its verbs.
        listed: Whether argparse lists them in the help.
    """
    about = None if listed else 'see below'
    subparsers = parser.add_subparsers(required=True, metavar='VERB', help=about)
    for verb in verbs:
        listing: dict[str, Any] = {'help': verb.help} if listed else {}
        child = subparsers.add_parser(
            verb.name,
            **listing,
            description=textwrap.fill(verb.description, HELP_WIDTH),
            epilog=verb.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if isinstance(verb, VerbGroup):
            add_verbs(child, verb.verbs)
        else:
            add_options(child, verb.options)
            child.set_defaults(verb=verb, parser=child)
