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
"""Sections of a parameter file that apply to the drive node."""

NODE_ONLY = ('use_sim_time', 'autostart')
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


def camera_names_in(path: Path | None) -> list[str] | None:
    """Return `camera_names` of a parameter file; None if there is no file or it names none.

    Raises:
        ConfigError: The file is not a parameter file.
    """
    return None if path is None else _read_values(path).get(CAMERA_NAMES.name)


def _read_values(path: Path) -> dict[str, Any]:
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
    ours = [values for name, values in sections.items() if name in NODE_NAMES]
    if not ours and len(sections) == 1:  # the node has been given another name
        ours = list(sections.values())
    values = dict(item for section in ours for item in _flatten(section))
    if values:
        return values
    if sections:
        raise ConfigError(
            f'params_file: {path}: got parameters of {", ".join(sections)}, needed: a section of '
            'p2d or /**'
        )
    raise ConfigError(f'params_file: {path} has no ros__parameters; see config/drive.yaml')


def _sections(tree: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the names of nodes, without namespace, and their parameters."""
    for name, value in tree.items():
        if isinstance(value, dict) and isinstance(value.get('ros__parameters'), dict):
            yield str(name).rpartition('/')[2], value['ros__parameters']
        elif isinstance(value, dict):
            yield from _sections(value)


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value
