"""The configuration as flat parameters with dotted names, for ROS and for parameter files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
import difflib
from functools import cache
import math
from typing import Any

from p2d_node.config import (
    CameraConfig,
    DEFAULT_RETENTION_RATIO,
    DriveConfig,
    EncoderConfig,
    RETENTION_RATIO,
    SyncConfig,
)
from p2d_node.config_option import Option
from p2d_node.errors import ConfigError, quote
from p2d_node.records import NUSCENES_CAMERAS


@dataclass(frozen=True, slots=True)
class Parameter:
    """One value of the configuration as a parameter.

    Attributes:
        name: Name with dots, such as `sync.tolerance_ms`.
        default: Value if nothing is set; its type is the type of the parameter.
        option: Help text and allowed values.
    """

    name: str
    default: Any
    option: Option


MAX_NAMES_SHOWN = 6

LARGEST_WHOLE = 1 << 1000

TYPE_WORDS = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a text'}

MAX_CAMERAS = 64
"""A vehicle has up to a dozen; each has parameters of its own."""

CAMERA_NAMES = Parameter(
    'camera_names',
    NUSCENES_CAMERAS,
    Option(help='The cameras, in the order in which the model sees them.', fixed=True),
)
"""Its value decides which parameters `cameras.<NAME>.*` and `retention_ratio.<NAME>` exist."""


def check_camera_names(names: Any) -> tuple[str, ...]:
    """Return the value of `camera_names` as a tuple.

    Raises:
        ConfigError: Not a list of different, non-empty texts, too many, or a text with a dot,
            which separates the parts of parameter names.
    """
    if (
        not isinstance(names, (list, tuple))
        or not 0 < len(names) <= MAX_CAMERAS
        or not all(
            isinstance(name, str) and name and not {'.', '\0'} & set(name) for name in names
        )
        or len(set(names)) < len(names)
    ):
        raise ConfigError(
            f'{CAMERA_NAMES.name}: got {quote(names)}, allowed: a list of 1 to {MAX_CAMERAS} '
            'different names without dots, such as [CAM_FRONT, CAM_BACK]'
        )
    return tuple(names)


def list_parameters(
    camera_names: Sequence[str], tuned: Mapping[str, float] | None = None
) -> list[Parameter]:
    """Return all parameters except `camera_names`.

    Args:
        camera_names: The cameras.
        tuned: Camera to the retention ratio that was tuned for the model, if any.
    """
    defaults = _default_config()
    parameters = _leaves(defaults, '')
    for section in ('encoder', 'sync'):
        parameters += _leaves(getattr(defaults, section), f'{section}.')
    for name in camera_names:
        camera = defaults.cameras.get(name, CameraConfig(topic=f'{name}/image_raw/compressed'))
        parameters += _leaves(camera, f'cameras.{name}.')
        ratio = (tuned or {}).get(name, DEFAULT_RETENTION_RATIO)
        parameters.append(Parameter(f'retention_ratio.{name}', ratio, RETENTION_RATIO))
    return parameters


@cache
def _default_config() -> DriveConfig:
    """Return the defaults; they are read for every change of a parameter."""
    return DriveConfig()


def closest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known parameter with the most similar name; None if no name is similar."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return close[0] if close else None


def check_no_group(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise `ConfigError` if `name` is the first part of parameters, not one of them."""
    parts = sorted(other for other in known if other.startswith(f'{name}.'))
    if parts:
        more = ' and so on' if len(parts) > MAX_NAMES_SHOWN else ''
        raise ConfigError(
            f'{name}: got {quote(value)}, but it is a group of parameters; set '
            f'{", ".join(parts[:MAX_NAMES_SHOWN])}{more}'
        )


def config_from_parameters(
    camera_names: Sequence[str],
    values: Mapping[str, Any],
    tuned: Mapping[str, float] | None = None,
) -> DriveConfig:
    """Build the configuration from parameter values.

    Args:
        camera_names: The cameras.
        values: Parameter names to values. Parameters that are not in it have their default.
        tuned: As for `list_parameters`.

    Raises:
        ConfigError: A name that is not a parameter, a value of the wrong type or out of range.
    """
    camera_names = check_camera_names(camera_names)
    known = {parameter.name: parameter for parameter in list_parameters(camera_names, tuned)}
    for name in values:
        if name not in known:
            close = closest_name(name, known)
            hint = f'did you mean {close}?' if close else f'allowed: {", ".join(sorted(known))}'
            check_no_group(name, values[name], known)
            raise ConfigError(f'{name}: there is no such parameter; {hint}')
    typed = {
        name: _to_type_of(parameter.default, values.get(name, parameter.default), name)
        for name, parameter in known.items()
    }

    def section(prefix: str) -> dict[str, Any]:
        return {
            name.removeprefix(prefix): value
            for name, value in typed.items()
            if name.startswith(prefix)
        }

    return DriveConfig(
        **{name: value for name, value in typed.items() if '.' not in name},
        encoder=EncoderConfig(**section('encoder.')),
        sync=SyncConfig(**section('sync.')),
        cameras={name: CameraConfig(**section(f'cameras.{name}.')) for name in camera_names},
        retention_ratio=section('retention_ratio.'),
    )


def _leaves(config: Any, prefix: str) -> list[Parameter]:
    return [
        Parameter(f'{prefix}{item.name}', getattr(config, item.name), item.metadata['option'])
        for item in fields(config)
        if 'option' in item.metadata
    ]


def _to_type_of(default: Any, value: Any, name: str) -> Any:
    """Return `value` in the type of `default`; ints become floats and lists tuples."""
    if isinstance(default, tuple):
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ConfigError(f'{name}: got {quote(value)}, allowed: a list of texts')
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < LARGEST_WHOLE else math.inf  # which no range allows
    if type(value) is not type(default):
        raise ConfigError(f'{name}: got {quote(value)}, allowed: {TYPE_WORDS[type(default)]}')
    return value
