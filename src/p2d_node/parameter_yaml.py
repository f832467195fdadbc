"""Checks the YAML of ROS parameters for what rcl would change without a word, or cannot read."""

from __future__ import annotations

import re

from p2d_node.errors import ConfigError, quote
from p2d_node.yaml_text import check_plain, FAST_LOADER
import yaml

SECTION = re.compile(r'/?(\w+|\*{1,2})(/+(\w+|\*{1,2}))*/?', re.ASCII)
"""Names of nodes; rclpy makes a regular expression of them."""

MAX_SECTION_CHARACTERS = 256
MAX_SECTION_WILDCARDS = 2
"""** in the name of a section; the time of the regular expression grows with each as a power."""


def check_parameter_yaml(text: str | bytes, where: str) -> None:
    """Check a parameter file, or the value of one parameter.

    rcl joins the lists in a list to one. Of two values of one name it uses the last, and of two
    YAML documents too.

    Args:
        text: The YAML; text that is no YAML is not refused here.
        where: The file or the parameter, for messages.

    Raises:
        ConfigError: A list or group in a list, a name that is set twice, a second document, a
            section whose name is none of a node, or YAML that is not plain.
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
    except yaml.YAMLError:
        # The reader of the values says why. PyYAML is stricter than rcl in a few characters.
        return


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
        name, line = str(key.value), key.start_mark.line + 1
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


def _check_section(name: str, where: str) -> None:
    if (
        len(name) > MAX_SECTION_CHARACTERS
        or name.count('**') > MAX_SECTION_WILDCARDS
        or not SECTION.fullmatch(name)
    ):
        raise ConfigError(
            f'{where}: got the section {quote(name)}, allowed: the name of a node with its '
            f'namespace, of up to {MAX_SECTION_CHARACTERS} characters, with * for one name and up '
            f'to {MAX_SECTION_WILDCARDS} times ** for any number of them'
        )
