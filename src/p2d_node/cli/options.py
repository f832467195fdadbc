"""Command line options as frozen dataclasses: help, default, range and choices in field metadata.

`add_options` adds the arguments of such a class to an `argparse` parser; `make_options` makes a
checked object of the class from what was parsed. Fields are declared by `argument`, or by
`same_as` where a configuration class declares the same value already.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, Field, field, fields, MISSING
import inspect
from pathlib import Path
import types
from typing import Any, get_args, get_origin, get_type_hints, TypeVar

from p2d_node.config_option import check_fields, Option
from p2d_node.durable_files import refuse_link
from p2d_node.errors import ConfigError

OptionsT = TypeVar('OptionsT', bound='Options')


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """How a field appears on the command line.

    Attributes:
        flag: Its option, such as `--wait`. Empty: `--` and the name of the field.
        metavar: Placeholder of the value in the help. Empty: the flag in capitals.
        positional: True for a value without a flag.
        default_text: Text for the default in the help. Empty: the default itself.
        needs: Field without which this option has no effect.
        unless: Field with which this option has no effect.
    """

    flag: str = ''
    metavar: str = ''
    positional: bool = False
    default_text: str = ''
    needs: str = ''
    unless: str = ''


def argument(
    default: Any = MISSING,
    help: str = '',
    *,
    flag: str = '',
    metavar: str = '',
    positional: bool = False,
    default_text: str = '',
    needs: str = '',
    unless: str = '',
    **limits: Any,
) -> Any:
    """Declare a field of an `Options` class.

    Args:
        default: Value where the option is not given; without one the option is required.
        help: One sentence.
        flag: Its option; see `Argument`.
        metavar: Placeholder of the value; see `Argument`.
        positional: True for a value without a flag.
        default_text: Text for the default; see `Argument`.
        needs: Field without which this option has no effect.
        unless: Field with which this option has no effect.
        limits: `minimum`, `maximum`, `above` or `choices`; see `p2d_node.config.Option`.
    """
    shown = Argument(
        flag=flag,
        metavar=metavar,
        positional=positional,
        default_text=default_text,
        needs=needs,
        unless=unless,
    )
    metadata = {'option': Option(help=help, **limits), 'argument': shown}
    return field(default=default, metadata=metadata)


def same_as(config_class: type[Any], name: str, **changes: Any) -> Any:
    """Declare a field with the help, limits and default that a configuration class declares.

    Args:
        config_class: A dataclass whose fields have an `Option`.
        name: A field of that dataclass.
        changes: Arguments of `argument` that differ from it.
    """
    (item,) = (item for item in fields(config_class) if item.name == name)
    option: Option = item.metadata['option']
    limits = {key: getattr(option, key) for key in ('minimum', 'maximum', 'above', 'choices')}
    return argument(**{'default': item.default, 'help': option.help, **limits, **changes})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all classes of options; checks the values on construction."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, show=_shown)
        for item in fields(self):
            if getattr(self, item.name) == '' != item.default:
                raise ConfigError(f'{item.name}: got an empty text; leave it out, or give a value')
        _check_effects(self)


def _check_effects(options: Options) -> None:
    """Raise `ConfigError` for an option that has no effect with the others."""
    items = {item.name: item for item in fields(options)}
    given = [name for name, item in items.items() if getattr(options, name) != item.default]
    for name in given:
        shown: Argument = items[name].metadata['argument']
        value = getattr(options, name)
        got = f'{name}: it has no effect'
        if value is not True:
            got = f'{name}: got {value}, which has no effect'
        if shown.needs and shown.needs not in given:
            raise ConfigError(f'{got} without {flag_of(items[shown.needs])}; leave it out')
        if shown.unless in given:
            raise ConfigError(f'{got} with {flag_of(items[shown.unless])}; leave it out')


def flag_of(item: Field[Any]) -> str:
    """Return the option of a field as a user types it, such as `--engine-dir`."""
    shown: Argument = item.metadata['argument']
    if shown.positional:
        return item.name.replace('_', ' ')
    return shown.flag or f'--{item.name.replace("_", "-")}'


def add_options(parser: argparse.ArgumentParser, options_class: type[Options]) -> None:
    """Add an argument for each field; those of a base class with a `TITLE` form a group."""
    hints = get_type_hints(options_class)
    groups: dict[str, Any] = {}
    for item in fields(options_class):
        title = _title_of(item.name, options_class)
        if title not in groups:
            groups[title] = parser.add_argument_group(title) if title else parser
        _add(groups[title], item, hints[item.name])


def _title_of(name: str, options_class: type[Options]) -> str:
    declared = (cls for cls in options_class.__mro__ if name in inspect.get_annotations(cls))
    return str(vars(next(declared)).get('TITLE', ''))


def _add(group: Any, item: Field[Any], hint: Any) -> None:
    shown: Argument = item.metadata['argument']
    name = item.name if shown.positional else flag_of(item)
    if hint is bool:
        group.add_argument(name, dest=item.name, action='store_true', help=_help(item))
        return
    keywords: dict[str, Any] = {'help': _help(item)}
    kind, is_list = _value_type(hint)
    keywords['type'] = CONVERTERS.get(kind, kind)
    if not shown.positional:
        keywords['metavar'] = shown.metavar or _metavar(item)
        keywords |= {'dest': item.name, 'required': item.default is MISSING}
        keywords |= {'nargs': '+'} if is_list else {}
    elif item.default is not MISSING:
        keywords['nargs'] = '*' if is_list else '?'
    group.add_argument(name, **keywords)


def _metavar(item: Field[Any]) -> str:
    choices = item.metadata['option'].choices
    return f'{{{",".join(choices)}}}' if choices else flag_of(item)[2:].replace('-', '_').upper()


def _value_type(hint: Any) -> tuple[Any, bool]:
    """Return the type of one value, and whether there may be several."""
    if isinstance(hint, types.UnionType):  # X | None
        hint = get_args(hint)[0]
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    return hint, False


def _help(item: Field[Any]) -> str:
    option: Option = item.metadata['option']
    parts = [option.help]
    if option.allowed and not option.choices:
        parts.append(f'Allowed: {option.allowed}.')
    if default := item.metadata['argument'].default_text or _default_text(item.default):
        parts.append(f'Default: {default}.')
    return ' '.join(parts).replace('%', '%%')


def _default_text(default: Any) -> str:
    if isinstance(default, tuple):
        return ' '.join(map(_default_text, default))
    if default is MISSING or default is None or default is False:
        return ''
    return f'{default:g}' if isinstance(default, float) else str(default)


def _shown(value: Any) -> str:
    return f'{value:g}' if isinstance(value, float) else repr(value)


def _to_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'got {text!r}, allowed: a whole number') from None


def _to_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'got {text!r}, allowed: a number') from None


def _to_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError('got an empty text, allowed: a path')
    return Path(text)


CONVERTERS: Mapping[Any, Callable[[str], Any]] = {int: _to_int, float: _to_float, Path: _to_path}


def make_options(options_class: type[OptionsT], parsed: argparse.Namespace) -> OptionsT:
    """Return the options that were parsed.

    Raises:
        ConfigError: A value that is not allowed, or the folder of a default is a link: it may have
            come with a data set.
    """
    given = {name: getattr(parsed, name) for name in flags_of(options_class)}
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value not in (None, [])
    }
    for item in fields(options_class):
        path = item.default
        if item.name not in values and isinstance(path, Path):
            refuse_link(path, item.name)
    return options_class(**values)


def flags_of(options_class: type[Options]) -> dict[str, str]:
    """Return the name of each field with its option as a user types it."""
    return {item.name: flag_of(item) for item in fields(options_class)}


def flags_in_errors(options: Options) -> dict[str, str]:
    """Return the names of fields that errors show as options.

    With a parameter file the value of an option that is not given comes from there, and the error
    keeps the name of the parameter.
    """
    flags = flags_of(type(options))
    if getattr(options, 'params_file', None) is None:
        return flags
    return {name: flag for name, flag in flags.items() if getattr(options, name) not in (None, '')}


def with_flags(message: str, flags: Mapping[str, str]) -> str:
    """Return an error message with the parameters before its first colon as options.

    `engine_dir: got 'x', allowed: ...` becomes `--engine-dir: got 'x', allowed: ...`.
    """
    names, colon, rest = message.partition(':')
    shown = [flags.get(name.replace('.', '_'), name) for name in names.split(', ')]
    return ', '.join(shown) + colon + rest


def require_one(options: Options, *names: str) -> None:
    """Raise `ConfigError` unless exactly one of these options is given."""
    require_at_most_one(options, *names)
    if all(getattr(options, name) is None for name in names):
        raise ConfigError(f'{", ".join(names)}: got none, needed: one of them')


def require_at_most_one(options: Options, *names: str) -> None:
    """Raise `ConfigError` where two or more of these options are given."""
    given = [name for name in names if getattr(options, name) is not None]
    if len(given) > 1:
        got = 'both' if len(given) == 2 else f'all {len(given)}'
        raise ConfigError(f'{", ".join(given)}: got {got}, allowed: one of them')
