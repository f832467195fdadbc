"""Finds in ROS arguments and parameter files what rcl changes without a word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import itertools
from pathlib import Path

from p2d_node.errors import ConfigError
import yaml

ARGUMENTS_START, ARGUMENTS_END = '--ros-args', '--'
FILE_OPTION, VALUE_OPTIONS = '--params-file', ('-p', '--param')
PARAMETERS_KEY = 'ros__parameters'


def check_parameter_sources(args: Sequence[str]) -> None:
    """Check the parameters of a command line that rcl has accepted.

    rcl joins the lists in a list to one, and uses the last of two values of one name.

    Args:
        args: Command line with ROS arguments.

    Raises:
        ConfigError: A list or group in a list, or a parameter that one file sets twice.
    """
    for option, value in _options(args):
        if option == FILE_OPTION:
            for section in _parameter_sections(_compose(Path(value).read_bytes(), value)):
                _check_mapping(section, '', f'{value}: ')
        elif option in VALUE_OPTIONS:
            name, _, text = value.partition(':=')
            _check_value(_compose(text, name), name, '')


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each ROS argument with the one that follows it."""
    is_ros = False
    for argument, following in itertools.pairwise(args):
        if argument in (ARGUMENTS_START, ARGUMENTS_END):
            is_ros = argument == ARGUMENTS_START
        elif is_ros:
            yield argument, following


def _compose(text: str | bytes, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text)
    except RecursionError as err:
        raise ConfigError(f'{name}: got lists or groups nested a thousand deep') from err
    except yaml.YAMLError:  # PyYAML is stricter than rcl in a few characters
        return None


def _parameter_sections(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == PARAMETERS_KEY and isinstance(value, yaml.MappingNode):
                yield value
            else:
                yield from _parameter_sections(value)


def _check_mapping(mapping: yaml.MappingNode, prefix: str, where: str) -> None:
    seen: dict[str, int] = {}
    for key, value in mapping.value:
        name, line = f'{prefix}{key.value}', key.start_mark.line + 1
        if name in seen:
            raise ConfigError(
                f'{where}{name}: set in line {seen[name]} and in line {line}, allowed: one value; '
                'remove one of the lines'
            )
        seen[name] = line
        if isinstance(value, yaml.MappingNode):
            _check_mapping(value, f'{name}.', where)
        else:
            _check_value(value, name, where)


def _check_value(value: yaml.Node | None, name: str, where: str) -> None:
    if not isinstance(value, yaml.SequenceNode):
        return
    for item in value.value:
        if not isinstance(item, yaml.ScalarNode):
            raise ConfigError(
                f'{where}{name}: got a list or a group in a list, allowed: a list of values; '
                'write [a, b] instead of [[a, b]]'
            )
