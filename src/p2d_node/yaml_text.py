"""YAML comes in; plain data goes out that is no larger than what was written."""

from __future__ import annotations

from typing import Any

from p2d_node.errors import first_line
import yaml

MAX_YAML_BYTES = 1 << 20
"""Parameter files have a few kilobytes, and the metadata of a long bag a few hundred."""

MAX_DEPTH = 32
MAX_DIGITS = 20
"""Of a whole number: 64 bits have 19 and a sign."""

MAX_VALUES = 20_000
"""Values, lists and groups of one text; Python makes about 20,000 objects of them in a second."""

FAST_LOADER: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
"""libyaml, if PyYAML was built with it, reads a megabyte in a second instead of a minute."""


class PlainLoader(FAST_LOADER):  # type: ignore[misc]  # one of two classes
    """Refuses numbers that are too large to compute with or to print."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return a whole number."""
        if len(node.value) > MAX_DIGITS:
            raise yaml.constructor.ConstructorError(
                problem=f'got a number of {len(node.value)} characters, allowed: {MAX_DIGITS}',
                problem_mark=node.start_mark,
            )
        return int(super().construct_yaml_int(node))


PlainLoader.add_constructor('tag:yaml.org,2002:int', PlainLoader.construct_yaml_int)


def check_plain(text: str | bytes) -> None:
    """Check YAML for what makes a small text large or slow.

    Raises:
        ValueError: It is too large, nested too deeply or has an alias.
        YAMLError: It is not YAML.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f'got {len(text)} bytes of YAML, allowed: at most {MAX_YAML_BYTES}')
    depth = 0
    for number, event in enumerate(yaml.parse(text, FAST_LOADER)):
        if number > MAX_VALUES:
            raise ValueError(f'got more than {MAX_VALUES} values in YAML; write fewer')
        place = _place(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(
                f'{place}got an alias (*), allowed: plain values; write the value again'
            )
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(
                f'{place}got lists or groups nested {depth} deep, allowed: {MAX_DEPTH}; write '
                'fewer'
            )


def _place(mark: Any) -> str:
    return f'line {mark.line + 1}: ' if mark else ''


def yaml_reason(err: yaml.YAMLError) -> str:
    """Return why a text is not YAML, as one line with the line number."""
    if isinstance(err, yaml.MarkedYAMLError):
        return f'{_place(err.problem_mark or err.context_mark)}{err.problem or err.context}'
    return first_line(err)


def parse_yaml(text: str | bytes) -> Any:
    """Return the content of a YAML text.

    Raises:
        ValueError: It is not YAML, or not plain. The message is one line with the line number.
    """
    try:
        check_plain(text)
        return yaml.load(text, PlainLoader)
    except yaml.YAMLError as err:
        raise ValueError(yaml_reason(err)) from err
    except Exception as err:  # what tags construct raises errors of many classes
        raise ValueError(first_line(err)) from err
