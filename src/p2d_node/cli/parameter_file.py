"""A ROS parameter file, read without ROS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from p2d_node.config import CAMERA_NAMES, config_from_parameters, DriveConfig
from p2d_node.errors import ConfigError
import yaml


def read_drive_config(path: Path | None) -> DriveConfig:
    """Return the configuration in a parameter file of the drive node; None: the defaults.

    Raises:
        ConfigError: Not a parameter file, or a value that is not allowed.
    """
    if path is None:
        return DriveConfig()
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as err:
        raise ConfigError(f'{path}: not a readable parameter file: {err}') from err
    values: dict[str, Any] = {}
    for node in content.values() if isinstance(content, dict) else ():
        if isinstance(node, dict) and isinstance(node.get('ros__parameters'), dict):
            values |= dict(_flatten(node['ros__parameters']))
    if not values:
        raise ConfigError(f'{path}: holds no ros__parameters; see config/drive.yaml')
    names = values.pop(CAMERA_NAMES.name, CAMERA_NAMES.default)
    values.pop('use_sim_time', None)
    values.pop('autostart', None)
    return config_from_parameters(names, values)


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value
