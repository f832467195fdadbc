"""Checks the YAML of ROS parameters for what rcl would change without a word, or cannot read."""

from __future__ import annotations

import re

from p2d_node.errors import ConfigError, quote
from p2d_node.yaml_text import check_plain, FAST_LOADER, yaml_reason
import yaml

SECTION = re.compile(r'/?(\w+|\*{1,2})(/+(\w+|\*{1,2}))*/?', re.ASCII)
"""Names of nodes; rclpy makes a regular expression of them."""

MAX_NAME_CHARACTERS = 256
"""Of a name with those of the groups around it, which rcl and p2d write before each value."""

MAX_SECTION_WILDCARDS = 2
"""** in the name of a section; the time of the regular expression grows with each as a power."""


def check_parameter_yaml(text: str | bytes, where: str) -> None:
    """Check a parameter file, or the value of one parameter.

    rcl joins the lists in a list to one. Of two values of one name it uses the last, and of two
    YAML documents too.

    Args:
        text: The YAML.
        where: The file or the parameter, for messages.

    Raises:
        ConfigError: A list or group in a list, a name that is set twice, a second document, a
            section whose name is none of a node, a name that is no text or too long, or text that
            is not YAML, or not plain.
    """
    try:
        check_plain(text)
        documents = [node for node in yaml.compose_all(text, FAST_LOADER) if node is not None]
        if len(documents) > 1:
            raise ConfigError(
                f'{where}: got {len(documents)} YAML documents, allowed: one; remove the line ---'
            )
        for document in documents:
            _check_node(document, '', where)
    except ValueError as err:
        raise ConfigError(f'{where}: {err}') from err
    except yaml.YAMLError as err:
        # rcl would read all that is before the error.
        raise ConfigError(f'{where}: not YAML: {yaml_reason(err)}; correct it') from err


def _check_node(node: yaml.Node, name: str, where: str) -> None:
    if isinstance(node, yaml.MappingNode):
        _check_mapping(node, name, where)
    elif isinstance(node, yaml.SequenceNode) and not _is_flat(node):
        raise ConfigError(
            f'{": ".join(filter(None, (where, name)))}: got a list or a group in a list, allowed: '
            'a list of values; write [a, b] instead of [[a, b]]'
        )


def _is_flat(node: yaml.SequenceNode) -> bool:
    return all(isinstance(item, yaml.ScalarNode) for item in node.value)


def _check_mapping(mapping: yaml.MappingNode, prefix: str, where: str) -> None:
    lines: dict[str, int] = {}
    for key, value in mapping.value:
        line = key.start_mark.line + 1
        _check_name(key, prefix, f'{where}: line {line}')
        name = key.value
        full_name = f'{prefix}.{name}' if prefix else name
        if name in lines:
            raise ConfigError(
                f'{where}: {full_name}: set in line {lines[name]} and in line {line}, allowed: '
                'one value; remove one of the lines'
            )
        lines[name] = line
        if name == 'ros__parameters':
            _check_section(prefix.replace('.', '/'), where)
        # The parts of a name begin below this key.
        _check_node(value, '' if name == 'ros__parameters' else full_name, where)


def _check_name(key: yaml.Node, prefix: str, where: str) -> None:
    is_text = isinstance(key, yaml.ScalarNode)
    num_characters = len(key.value) + (len(prefix) + len('.') if prefix else 0)
    if not is_text or num_characters > MAX_NAME_CHARACTERS:
        got = f'a name of {num_characters} characters' if is_text else 'a list or group as a name'
        raise ConfigError(
            f'{where}: got {got}, allowed: a text of up to {MAX_NAME_CHARACTERS} characters, with '
            'the names of the groups around it; write a shorter name'
        )


def _check_section(name: str, where: str) -> None:
    if name.count('**') > MAX_SECTION_WILDCARDS or not SECTION.fullmatch(name):
        raise ConfigError(
            f'{where}: got the section {quote(name)}, allowed: the name of a node with its '
            f'namespace, with * for one name and up to {MAX_SECTION_WILDCARDS} times ** for any '
            'number of them'
        )
