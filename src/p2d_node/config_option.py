"""Declares configuration fields: help text, allowed values, and their check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
import math
from typing import Any, TypeVar

from p2d_node.errors import ConfigError, quote

MAX_TEXT_CHARACTERS = 4096
"""Of a single text. Linux has no longer paths; ROS keeps the latest changes of parameters while a
peer does not acknowledge them."""

T = TypeVar('T')


@dataclass(frozen=True, slots=True)
class Option:
    """Description and allowed values of a configuration field.

    Attributes:
        help: Text for `ros2 param describe` and `--help`.
        minimum: Smallest allowed number, inclusive; None: no limit.
        maximum: Largest allowed number, inclusive; None: no limit.
        above: Exclusive lower limit, in place of `minimum`; None: no limit.
        smallest: Smallest allowed number but 0, which turns the feature off; None: no limit.
        choices: Allowed values; empty: any.
        runtime: Whether the value may change while the node runs. Others may change while it is
            unconfigured.
        fixed: Whether only a new start of the node changes the value.
        max_texts: Largest number of texts in a list; None: no limit.
        max_characters: Largest number of characters of these texts together; None: no limit.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    runtime: bool = False
    fixed: bool = False
    above: float | None = None
    max_texts: int | None = None
    max_characters: int | None = None
    smallest: float | None = None

    @property
    def allowed(self) -> str:
        """What may be given, in words; empty where any value may."""
        if self.choices:
            return ', '.join(self.choices)
        if self.max_texts is not None:
            return f'up to {self.max_texts} texts of {self.max_characters} characters together'
        low = '' if self.minimum is None else _number(self.minimum)
        low = low if self.above is None else f'above {_number(self.above)}'
        low = low if self.smallest is None else f'{low}, or {_number(self.smallest)}'
        if self.maximum is None:
            return f'{low} or more' if self.minimum is not None else low
        return f'{low} to {_number(self.maximum)}' if low else f'at most {_number(self.maximum)}'

    def allows(self, value: Any) -> bool:
        """Tell whether a single value is one of the choices, or within the limits."""
        if self.choices:
            return value in self.choices
        if self.minimum is None and self.maximum is None and self.above is None:
            return True
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if self.smallest is not None and 0 < value < self.smallest:
            return False
        # nan is refused, as every comparison with it is false.
        return low <= value <= high and (self.above is None or value > self.above)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f'{value:g}'


def option(default: T, help: str, **limits: Any) -> T:
    """Declare a configuration field.

    Args:
        default: Value if nothing is set.
        help: As in `Option`.
        limits: Further fields of `Option`.
    """
    metadata = {'option': Option(help=help, **limits)}
    return field(default=default, metadata=metadata)


def check_value(
    name: str, value: Any, spec: Option, *, show: Callable[[Any], str] = quote
) -> None:
    """Check a value.

    Args:
        name: Full name of the parameter, for the message.
        value: The value to check; of a list or tuple every item is checked.
        spec: The allowed values.
        show: How the message writes the value.

    Raises:
        ConfigError: The value is not allowed.
    """
    if spec.max_texts is not None:
        _check_texts(name, value, spec)
    if isinstance(value, str) and len(value) > MAX_TEXT_CHARACTERS:
        raise ConfigError(
            f'{name}: got a text of {len(value)} characters, allowed: up to {MAX_TEXT_CHARACTERS}'
        )
    for item in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(item, str) and '\0' in item:
            raise ConfigError(f'{name}: got {show(item)}, allowed: a text without the character 0')
        if not spec.allows(item):
            raise ConfigError(f'{name}: got {show(item)}, allowed: {spec.allowed}')


def _check_texts(name: str, texts: Sequence[str], spec: Option) -> None:
    num_characters = sum(map(len, texts))
    if len(texts) > (spec.max_texts or 0) or num_characters > (spec.max_characters or 0):
        raise ConfigError(
            f'{name}: got {len(texts)} texts of {num_characters} characters together, allowed: '
            f'{spec.allowed}; remove or shorten some'
        )


def check_fields(config: Any, prefix: str = '', *, show: Callable[[Any], str] = quote) -> None:
    """Check the values of a dataclass whose fields are declared by `option`.

    Args:
        config: The dataclass; None is an allowed value of every field.
        prefix: Prefix of the names in messages.
        show: How the message writes a value.

    Raises:
        ConfigError: A value is not allowed.
    """
    for item in fields(config):
        spec, value = item.metadata.get('option'), getattr(config, item.name)
        if isinstance(item.default, str) and not isinstance(value, str):
            raise ConfigError(f'{prefix}{item.name}: got {quote(value)}, allowed: a text')
        if spec is not None and value is not None:
            check_value(f'{prefix}{item.name}', value, spec, show=show)
