"""Declares the ROS parameters of the configuration classes, and builds configurations of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from p2d_node.config import DriveConfig, SHIPPED_MODEL
from p2d_node.config_option import Option
from p2d_node.config_parameters import (
    CAMERA_NAMES,
    check_camera_names,
    check_no_group,
    closest_name,
    config_from_parameters,
    list_parameters,
    Parameter,
)
from p2d_node.errors import ConfigError, quote
from p2d_node.retention_presets import tuned_ratios
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

RATIO_PREFIX = 'retention_ratio.'
CAMERA_PREFIX = 'cameras.'
CAMERA_PREFIXES = (CAMERA_PREFIX, RATIO_PREFIX, CAMERA_NAMES.name)

AUTOSTART = Parameter(
    'autostart',
    True,
    Option(help='Whether the node configures and activates itself at start.', fixed=True),
)


def descriptor_of(parameter: Parameter) -> ParameterDescriptor:
    """Return help, range and allowed values of a parameter, and whether it may change."""
    option = parameter.option
    descriptor = ParameterDescriptor(
        name=parameter.name,
        description=option.help,
        read_only=option.fixed,
    )
    if option.choices:
        descriptor.additional_constraints = f'one of: {", ".join(option.choices)}'
    elif option.max_texts is not None:
        descriptor.additional_constraints = option.allowed
    elif option.minimum is not None and option.maximum is not None:
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
    if option.smallest is not None:
        descriptor.additional_constraints = option.allowed


def declare_parameters(node: Node) -> DriveConfig:
    """Declare every parameter of the drive node and return the configuration.

    Raises:
        ConfigError: A value that is not allowed, or a ratio of a camera that is not configured.
    """
    given = _overrides(node)
    camera_names = check_camera_names(given.pop(CAMERA_NAMES.name, CAMERA_NAMES.default))
    tuned = tuned_ratios(str(given.get('model', SHIPPED_MODEL)))
    parameters = list_parameters(camera_names, tuned)
    known = {parameter.name for parameter in parameters}
    _check_names(node, given, known)
    ours = {n: v for n, v in given.items() if n in known or n.startswith(RATIO_PREFIX)}
    config = config_from_parameters(camera_names, ours, tuned)
    _declare(node, CAMERA_NAMES, camera_names)
    for parameter in parameters:
        _declare(node, parameter, given.get(parameter.name, parameter.default))
    return config


def ratios_not_given(node: Node, cameras: Iterable[str]) -> dict[str, str]:
    """Return the retention ratios that no file or argument sets: parameter name to camera."""
    names = {f'{RATIO_PREFIX}{camera}': camera for camera in cameras}
    given = _overrides(node)
    return {name: camera for name, camera in names.items() if name not in given}


def declare_autostart(node: Node) -> bool:
    """Declare the parameter `autostart` and return its value.

    Raises:
        ConfigError: The value is not a boolean.
    """
    value = _overrides(node).get(AUTOSTART.name, AUTOSTART.default)
    if not isinstance(value, bool):
        raise ConfigError(f'{AUTOSTART.name}: got {quote(value)}, allowed: true, false')
    _declare(node, AUTOSTART, value)
    return value


def _overrides(node: Node) -> dict[str, Any]:
    """Return the values from parameter files, command line and constructor, by parameter name."""
    # rclpy has no public method for this. Its automatic declaration refuses an empty list, which
    # rcl hands over as a parameter without a type.
    overrides = node._parameter_overrides
    values = {name: parameter.value for name, parameter in overrides.items()}
    return {name: [] if value is None else value for name, value in values.items()}


def _check_names(node: Node, given: Mapping[str, Any], known: Set[str]) -> None:
    # A file for many nodes may hold parameters of other nodes, so most unknown names are no error.
    for name in given:
        if name in known or name.startswith(RATIO_PREFIX):
            continue
        check_no_group(name, given[name], known)
        close = closest_name(name, {*known, CAMERA_NAMES.name})
        if name.startswith(CAMERA_PREFIX) or (close or '').startswith(CAMERA_PREFIXES):
            hint = f'did you mean {close}?' if close else f'allowed: {_cameras_of(known)}'
            # The node would listen to other topics than its owner believes.
            raise ConfigError(
                f'{name}: there is no such parameter; {hint}; every camera must be in camera_names'
            )
        if close:
            node.get_logger().warning(f'{name}: not a parameter; did you mean {close}?')


def _cameras_of(known: Iterable[str]) -> str:
    cameras = {
        name.split('.')[1]: None for name in sorted(known) if name.startswith(CAMERA_PREFIX)
    }
    return ', '.join(f'{CAMERA_PREFIX}{camera}.*' for camera in cameras)


def _declare(node: Node, parameter: Parameter, value: Any) -> None:
    descriptor = descriptor_of(parameter)
    is_list, is_float = (isinstance(parameter.default, kind) for kind in (tuple, float))
    try:
        if is_list and not value:
            # rclpy takes an empty list for one of bytes unless it is told the type.
            texts = RosParameter.Type.STRING_ARRAY
            node.declare_parameter(parameter.name, texts, descriptor, ignore_override=True)
            node.set_parameters([RosParameter(parameter.name, texts, [])])
            return
        value = list(value) if is_list else float(value) if is_float else value
        node.declare_parameter(parameter.name, value, descriptor, ignore_override=True)
    except ParameterException as err:
        raise ConfigError(f'{parameter.name}: {err}') from err


def updated_config(
    config: DriveConfig, changes: dict[str, Any], *, configured: bool
) -> DriveConfig:
    """Return a copy of `config` with changed parameters.

    Args:
        config: The configuration.
        changes: Parameter names to new values.
        configured: Whether a model is loaded, with values that cannot be changed under it.

    Raises:
        ConfigError: A value that is not allowed, or not while the node is configured.
    """
    names = tuple(config.cameras)
    for parameter in list_parameters(names):
        if configured and parameter.name in changes and not parameter.option.runtime:
            raise ConfigError(
                f'{parameter.name}: got {quote(changes[parameter.name])}, allowed: changes while '
                'the node is unconfigured; clean it up first, then set and configure it again'
            )
    return config_from_parameters(names, {**_values_of(config, names), **changes})


def _values_of(config: DriveConfig, camera_names: tuple[str, ...]) -> dict[str, Any]:
    values = {}
    for parameter in list_parameters(camera_names):
        holder: Any = config
        for part in parameter.name.split('.'):
            holder = holder[part] if isinstance(holder, dict) else getattr(holder, part)
        values[parameter.name] = holder
    return values
