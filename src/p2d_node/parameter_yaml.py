"""Checks the YAML of ROS parameters for what rcl would change without a word, or cannot read."""

from __future__ import annotations

from p2d_node.errors import ConfigError
from p2d_node.yaml_text import check_plain, FAST_LOADER
import yaml


def check_parameter_yaml(text: str | bytes, where: str) -> None:
    """Check a parameter file, or the value of one parameter.

    rcl joins the lists in a list to one. Of two values of one name it uses the last, and of two
    YAML documents too.

    Args:
        text: The YAML; text that is no YAML is not refused here.
        where: The file or the parameter, for messages.

    Raises:
        ConfigError: A list or group in a list, a name that is set twice, a second document, or
            YAML that is not plain.
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
        # The parts of a name begin below this key.
        _check_node(value, '' if name == 'ros__parameters' else full_name, where)
