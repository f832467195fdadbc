"""ROS parameters from the configuration classes: declaration, descriptors, validation."""

from __future__ import annotations

from typing import Any

from p2d_node.config import (
    CAMERA_NAMES,
    closest_name,
    config_from_parameters,
    DriveConfig,
    list_parameters,
    Option,
    Parameter,
    SHIPPED_MODEL,
)
from p2d_node.errors import ConfigError
from p2d_node.retention_presets import tuned_ratios
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node

RATIO_PREFIX = 'retention_ratio.'

NODE_PARAMETERS = ('use_sim_time', 'start_type_description_service', 'autostart')
"""Parameters that rclpy or the node declare themselves."""


def descriptor_of(parameter: Parameter) -> ParameterDescriptor:
    """Describe a parameter to ROS: help, range, allowed values, whether it may change."""
    option = parameter.option
    descriptor = ParameterDescriptor(
        name=parameter.name,
        description=option.help,
        read_only=not option.runtime,
        # Lets `1` stand for `1.0` and an empty list for no texts; the types are checked by us.
        dynamic_typing=isinstance(parameter.default, (float, tuple)),
    )
    if option.choices:
        descriptor.additional_constraints = f'one of: {", ".join(option.choices)}'
    if option.minimum is not None and option.maximum is not None:
        _add_range(descriptor, parameter.default, option)
    return descriptor


def _add_range(descriptor: ParameterDescriptor, default: Any, option: Option) -> None:
    if isinstance(default, float):
        limits = FloatingPointRange(from_value=option.minimum, to_value=option.maximum)
        descriptor.floating_point_range = [limits]
    else:
        limits = IntegerRange(
            from_value=int(option.minimum or 0), to_value=int(option.maximum or 0)
        )
        descriptor.integer_range = [limits]


def declare_parameters(node: Node) -> DriveConfig:
    """Declare every parameter of the drive node and return the configuration they make.

    Raises:
        ConfigError: A value that is not allowed, or a ratio of a camera that is not configured.
    """
    given = _take_overrides(node)
    camera_names = given.pop(CAMERA_NAMES.name, CAMERA_NAMES.default)
    if not isinstance(camera_names, (list, tuple)):
        raise ConfigError(f'camera_names: got {camera_names!r}, allowed: a list of names')
    tuned = tuned_ratios(str(given.get('model', SHIPPED_MODEL)))
    parameters = list_parameters(camera_names, tuned)
    known = {parameter.name for parameter in parameters}
    # Files for many nodes may hold parameters of others, but a ratio of a misspelt camera is an
    # error.
    for name in given.keys() - known:
        if close := closest_name(name, known):
            node.get_logger().warning(f'{name}: not a parameter; did you mean {close}?')
    ours = {n: v for n, v in given.items() if n in known or n.startswith(RATIO_PREFIX)}
    config = config_from_parameters(camera_names, ours, tuned)
    _declare(node, CAMERA_NAMES, camera_names)
    for parameter in parameters:
        _declare(node, parameter, given.get(parameter.name, parameter.default))
    return config


def _take_overrides(node: Node) -> dict[str, Any]:
    """Undeclare what rclpy declared from parameter files, so that it can be declared in full."""
    given = {}
    for name, parameter in node.get_parameters_by_prefix('').items():
        if name not in NODE_PARAMETERS and not name.startswith('qos_overrides.'):
            given[name] = parameter.value
            node.undeclare_parameter(name)
    return given


def _declare(node: Node, parameter: Parameter, value: Any) -> None:
    value = list(value) if isinstance(value, tuple) else value
    try:
        node.declare_parameter(parameter.name, value, descriptor_of(parameter))
    except ParameterException as err:
        raise ConfigError(f'{parameter.name}: {err}') from err


def updated_config(config: DriveConfig, changes: dict[str, Any]) -> DriveConfig:
    """Return `config` with changed parameters.

    Raises:
        ConfigError: A value that is not allowed.
    """
    names = tuple(config.cameras)
    values = dict(_values_of(config, names))
    return config_from_parameters(names, {**values, **changes})


def _values_of(config: DriveConfig, camera_names: tuple[str, ...]) -> dict[str, Any]:
    values = {}
    for parameter in list_parameters(camera_names):
        holder: Any = config
        for part in parameter.name.split('.'):
            holder = holder[part] if isinstance(holder, dict) else getattr(holder, part)
        values[parameter.name] = holder
    return values
