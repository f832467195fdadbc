"""Writes the tables of docs/ that come from the code: parameters, messages and layers.

`--check` only compares.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from functools import partial
import re
import sys
from typing import Any

from measured_tables import markdown_table, ROOT, write_tables
from p2d_node.config_parameters import CAMERA_NAMES, list_parameters, Parameter
import tomllib

CAMERA = '<CAMERA>'
DRIVING_ANSWER = 'msg/DrivingAnswer.msg'
INTERFACES = ROOT / 'ros2_ws' / 'src' / 'p2d_msgs'
FIELD = re.compile(
    r'^(?P<type>[\w/]+(?:\[\])?)\s+(?P<name>\w+)(?P<value>=\w+)?\s*(?:# (?P<text>.*))?$'
)


def parameter_table(prefix: str) -> str:
    """Return the parameters whose names begin with `prefix`; '' for those without a section."""
    # One camera stands for all: its parameters are the same. An unknown name has plain defaults.
    parameters = [CAMERA_NAMES, *list_parameters([CAMERA])]
    chosen = [p for p in parameters if _section_of(p) == prefix]
    rows = [[f'`{p.name}`', _default_of(p), _allowed(p), _when(p), p.option.help] for p in chosen]
    header = ['name', 'default', 'allowed', 'may change', 'meaning']
    return markdown_table(header, 'lllll', rows)


def _section_of(parameter: Parameter) -> str:
    section, dot, _ = parameter.name.partition('.')
    return f'{section}{dot}' if dot else ''


def _default_of(parameter: Parameter) -> str:
    default = parameter.default
    if isinstance(default, tuple):
        return ', '.join(f'`{item}`' for item in default) or 'empty'
    if isinstance(default, bool):
        return str(default).lower()
    return f'`{default}`' if default != '' else 'empty'


def _allowed(parameter: Parameter) -> str:
    option = parameter.option
    if option.choices:
        return ', '.join(f'`{choice}`' for choice in option.choices)
    if option.minimum is not None or option.maximum is not None:
        smallest = '' if option.smallest is None else f', or {option.smallest:.12g}'
        return f'{option.minimum:.12g}{smallest} to {option.maximum:.12g}'
    if option.max_texts is not None:
        return option.allowed
    kinds = {tuple: 'list of texts', bool: 'true, false', str: 'text'}
    return kinds[type(parameter.default)]


def _when(parameter: Parameter) -> str:
    if parameter.option.fixed:
        return 'at start'
    return 'while running' if parameter.option.runtime else 'while unconfigured'


def interface_table(name: str) -> str:
    """Return the fields of a message or service of p2d_msgs."""
    rows = []
    part = 'request'
    for line in (INTERFACES / name).read_text(encoding='utf-8').splitlines():
        if line == '---':
            part = 'response'
        match = FIELD.match(line)
        if match and not match['value']:
            cells = [f'`{match["name"]}`', f'`{match["type"]}`', match['text'] or '']
            rows.append([part, *cells] if name.endswith('.srv') else cells)
    header = ['field', 'type', 'meaning']
    if name.endswith('.srv'):
        return markdown_table(['part', *header], 'llll', rows)
    return markdown_table(header, 'lll', rows)


def cut_table() -> str:
    """Return the values of the field `cut` of a DrivingAnswer."""
    lines = (INTERFACES / DRIVING_ANSWER).read_text(encoding='utf-8').splitlines()
    fields = [match for match in map(FIELD.match, lines) if match and match['value']]
    rows = [[f'`{match["value"][1:]}`', match['text']] for match in fields]
    return markdown_table(['`cut`', 'meaning'], 'll', rows)


def layer_table() -> str:
    """Return the layers of import-linter's contract, top to bottom, with what is in them."""
    rows = [
        [str(number), f'`{module}`', _first_sentence(module)]
        for number, layer in enumerate(_layers(), 1)
        for module in layer
    ]
    return markdown_table(['layer', 'module', 'its docstring says'], 'rll', rows)


def _layers() -> list[list[str]]:
    settings: dict[str, Any] = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
    contracts: Iterable[dict[str, Any]] = settings['tool']['importlinter']['contracts']
    of_package = [c for c in contracts if c.get('containers') == ['p2d_node']]
    (layers,) = [contract['layers'] for contract in of_package]
    return [[name.strip(' ()') for name in re.split(r'[|:]', layer)] for layer in layers]


def _first_sentence(module: str) -> str:
    path = ROOT / 'src' / 'p2d_node' / module
    file = path / '__init__.py' if path.is_dir() else path.with_suffix('.py')
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding='utf-8'))) or ''
    return ' '.join(docstring.partition('\n\n')[0].split())


TABLES: dict[str, Callable[[], str]] = {
    'parameters': partial(parameter_table, ''),
    'parameters/encoder': partial(parameter_table, 'encoder.'),
    'parameters/sync': partial(parameter_table, 'sync.'),
    'parameters/cameras': partial(parameter_table, 'cameras.'),
    'parameters/retention_ratio': partial(parameter_table, 'retention_ratio.'),
    'messages/DrivingAnswer': partial(interface_table, DRIVING_ANSWER),
    'messages/StageTiming': partial(interface_table, 'msg/StageTiming.msg'),
    'messages/Ask': partial(interface_table, 'srv/Ask.srv'),
    'messages/cut': cut_table,
    'layers': layer_table,
}
DOCUMENTS = ('docs/architecture.md', 'docs/parameters.md', 'docs/topics.md')


def make_table(name: str) -> str:
    """Return the table called `name`."""
    return TABLES[name]()


if __name__ == '__main__':
    sys.exit(max(write_tables(document, make_table) for document in DOCUMENTS))
