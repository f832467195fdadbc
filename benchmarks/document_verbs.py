"""Writes docs/verbs.md from the declarations of the verbs: options, allowed values, examples.

`--check` only compares.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import re
import sys
import textwrap

from measured_tables import markdown_table, write_tables
from p2d_node.cli.options import add_options
from p2d_node.cli.verb import Parser, Verb, VerbGroup
from p2d_node.cli.verbs import HELP_GROUPS

DOCUMENT = 'docs/verbs.md'
COMMAND = re.compile(r'(p2d|ros2) ')


def make_table(_name: str) -> str:
    """Return the sections of all verbs as Markdown."""
    return '\n'.join(
        section
        for _, _, verbs in HELP_GROUPS
        for name, verb in _with_names(verbs)
        for section in _sections(name, verb)
    )


def _with_names(verbs: tuple[Verb | VerbGroup, ...]) -> Iterator[tuple[str, Verb]]:
    """Yield each verb with its full name; `bench select` is a verb of the group `bench`."""
    for verb in verbs:
        if isinstance(verb, VerbGroup):
            yield from ((f'{verb.name} {child.name}', child) for child in verb.verbs)
        else:
            yield verb.name, verb


def _sections(name: str, verb: Verb) -> list[str]:
    parser = Parser(prog=f'p2d {name}')
    add_options(parser, verb.options)
    rows = [
        [_shown(action), 'yes' if action.required else '', (action.help or '').replace('%%', '%')]
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    ]
    table = markdown_table(['option', 'required', 'meaning'], 'lll', rows)
    lines = textwrap.dedent(verb.examples.partition('\n')[2]).strip().splitlines()
    examples = '\n'.join(line if COMMAND.match(line) else f'# {line}' for line in lines)
    return [f'## p2d {name}\n', f'{verb.description}\n', table, f'```bash\n{examples}\n```\n']


def _shown(action: argparse.Action) -> str:
    """Return an option as a user types it."""
    value = '' if action.nargs == 0 else str(action.metavar or action.dest)
    if not action.option_strings:
        return f'`{value}`'
    return f'`{" ".join([action.option_strings[-1], value]).strip()}`'


if __name__ == '__main__':
    sys.exit(write_tables(DOCUMENT, make_table))
