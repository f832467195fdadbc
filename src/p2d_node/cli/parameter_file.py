"""Reads a parameter file of the drive node without ROS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from p2d_node.config import DriveConfig, SHIPPED_MODEL
from p2d_node.config_parameters import CAMERA_NAMES, config_from_parameters
from p2d_node.durable_files import read_file
from p2d_node.errors import ConfigError, quote
from p2d_node.parameter_yaml import check_parameter_yaml
from p2d_node.retention_presets import tuned_ratios
from p2d_node.yaml_text import MAX_YAML_BYTES, parse_yaml

NODE_NAMES = ('p2d', '**', '*')
"""Sections of a parameter file, without namespace, that apply to a drive node anywhere."""

NODE_ONLY = ('use_sim_time', 'autostart', 'start_type_description_service')
"""Parameters that mean something to the node only."""


def read_drive_config(
    path: Path | None,
    *,
    model: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> DriveConfig:
    """Return the configuration in a parameter file of the drive node.

    Args:
        path: The file; None for the defaults.
        model: Overrides the `model` of the file.
        defaults: Values of parameters that the file does not set.

    Raises:
        ConfigError: The file is not a parameter file, or holds a value that is not allowed.
    """
    values = {**(defaults or {}), **({} if path is None else _read_values(path))}
    if model is not None:
        values['model'] = model
    names = values.pop(CAMERA_NAMES.name, CAMERA_NAMES.default)
    for name in NODE_ONLY:
        if not isinstance(value := values.pop(name, False), bool):
            raise ConfigError(
                f'params_file: {path}: {name}: got {quote(value)}, allowed: true, false'
            )
    tuned = tuned_ratios(str(values.get('model', SHIPPED_MODEL)))
    try:
        return config_from_parameters(names, values, tuned)
    except ConfigError as err:
        if path is None:
            raise
        raise ConfigError(f'params_file: {path}: {err}') from err


def camera_names_in(path: Path, node: str) -> list[str] | None:
    """Return the `camera_names` that a parameter file gives a node; None if it gives none.

    Args:
        path: The file.
        node: Full name of the node, such as `/car1/p2d`.

    Raises:
        ConfigError: The file is not a parameter file, or has no section of the node.
    """
    return _read_values(path, node).get(CAMERA_NAMES.name)


def _read_values(path: Path, node: str = '') -> dict[str, Any]:
    """Return the parameters of a file for a node; without a name, those of any drive node."""
    try:
        text = read_file(path, MAX_YAML_BYTES)
        check_parameter_yaml(text, f'params_file: {path}')
        content = parse_yaml(text)
    except FileNotFoundError as err:
        raise ConfigError(f'params_file: {path} is missing; name a parameter file') from err
    except OSError as err:
        raise ConfigError(f'params_file: {path} cannot be read: {err.strerror}') from err
    except ValueError as err:
        raise ConfigError(f'params_file: {path} cannot be read: {err}') from err
    sections = dict(_sections(content)) if isinstance(content, dict) else {}
    ours = [values for name, values in sections.items() if _applies(name, node)]
    if not ours and not node and len(sections) == 1:  # the node has been given another name
        ours = list(sections.values())
    values = dict(item for section in ours for item in _flatten(section))
    if values:
        return values
    if sections:
        raise ConfigError(
            f'params_file: {path}: got parameters of {", ".join(sections)}, needed: a section of '
            f'{node or "p2d"} or /**'
        )
    raise ConfigError(f'params_file: {path} has no ros__parameters; see config/drive.yaml')


def _applies(section: str, node: str) -> bool:
    """Tell whether a section applies to the node of this full name; empty: to a drive node."""
    parts = section.strip('/').split('/')
    if not node:
        return parts[-1] in NODE_NAMES
    names = node.strip('/').split('/')
    counts = {0}  # how many names the parts so far may stand for; a regular expression takes hours
    for part in parts:
        if part == '**':
            counts = set(range(min(counts, default=len(names) + 1), len(names) + 1))
        else:
            counts = {n + 1 for n in counts if n < len(names) and part in ('*', names[n])}
    return len(names) in counts


def _sections(
    tree: Mapping[str, Any], namespace: str = ''
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the full names of nodes, which may hold wildcards, and their parameters."""
    for name, value in tree.items():
        full_name = f'{namespace}/{str(name).strip("/")}'
        if isinstance(value, dict) and isinstance(value.get('ros__parameters'), dict):
            yield full_name, value['ros__parameters']
        elif isinstance(value, dict):
            yield from _sections(value, full_name)


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value
