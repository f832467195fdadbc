"""Starts rclpy, and turns what ROS refuses into a `ConfigError` of one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
import os
import re
import sys
from typing import Any
import warnings

from p2d_node.errors import ConfigError
from p2d_node.ros.parameter_sources import check_parameter_sources
import rclpy
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.logging import get_logger_effective_level, LoggingSeverity, set_logger_level

DOMAIN_VARIABLE = 'ROS_DOMAIN_ID'
MAX_DOMAIN_ID = 232
"""The largest domain whose UDP ports exist (DDSI-RTPS: 7400 + 250 * domain + 11 < 65536)."""

SOURCE_LOCATION = re.compile(r',? at \S+\.(?:c|cpp|h|hpp):\d+')
"""rcl appends to a message where in its own source the error was found."""

PARAMETER_FILE_ERROR = re.compile(r"parse params file: '--params-file (.+?)'\. Error: (.+)")
ARGUMENT_ERROR = re.compile(r"Couldn't parse (.+)")
LOG_ERROR = re.compile(r'Failed (?:to create log directory|opening file) .+')
ERROR_NUMBER = re.compile(r'\d+$')
LOST_REPLY = 'failed to send response'
"""Beginning of a warning of rclpy, one per reply; `LostReplies` tells of them now and then."""

UNKNOWN_ARGUMENTS = re.compile(r'\[(.+)\]')


def init_rclpy(args: Sequence[str] | None = None, **options: Any) -> None:
    """Call `rclpy.init`.

    Args:
        args: Command line; None: that of the process.
        options: More arguments of `rclpy.init`.

    Raises:
        ConfigError: A ROS argument, a parameter file or an environment variable that ROS refuses,
            or parameters that it would change.
    """
    warnings.filterwarnings('ignore', LOST_REPLY, RuntimeWarning)
    _check_domain_id()
    check_parameter_sources(sys.argv if args is None else args)
    # The exception says the same as the log of rcl.
    set_logger_level('rcl', LoggingSeverity.FATAL)
    try:
        rclpy.init(args=args, **options)
    except RuntimeError as err:  # the base of rclpy's RCLError and UnknownROSArgsError
        raise ConfigError(_explain_init_error(rcl_reason(err))) from err
    finally:
        if get_logger_effective_level('rcl') == LoggingSeverity.FATAL:  # not set by the arguments
            set_logger_level('rcl', LoggingSeverity.UNSET)


def rcl_reason(err: Exception) -> str:
    """Return the message of an exception of rclpy as one line, without locations in its source."""
    return ' '.join(SOURCE_LOCATION.sub('', str(err)).split()).rstrip('.,: ')


@contextmanager
def node_creation_errors() -> Iterator[None]:
    """Translate what rclpy raises while it creates a node.

    Raises:
        ConfigError: The node's name, a parameter of rclpy or the network settings are refused.
    """
    try:
        yield
    except (RuntimeError, NameValidationException, ParameterException) as err:
        raise ConfigError(
            f'the node cannot be created: {rcl_reason(err)}; correct the ROS arguments, the '
            'parameter files or the ROS environment variables'
        ) from err


def _check_domain_id() -> None:
    # Fast DDS ends the process for some of these values.
    value = os.environ.get(DOMAIN_VARIABLE, '')
    if value and not (value.isascii() and value.isdecimal() and int(value) <= MAX_DOMAIN_ID):
        raise ConfigError(
            f'{DOMAIN_VARIABLE}: got {value!r}, allowed: 0 to {MAX_DOMAIN_ID}; set it to one of '
            'these numbers or unset it'
        )


def _explain_init_error(reason: str) -> str:
    if match := PARAMETER_FILE_ERROR.search(reason):
        path, why = match.groups()
        return (
            f'{path}: ROS cannot read this parameter file: {why}; correct it as in '
            'config/drive.yaml'
        )
    if match := LOG_ERROR.search(reason):
        why = ERROR_NUMBER.sub(lambda number: os.strerror(int(number[0])), match[0])
        return (
            f'ROS_LOG_DIR: ROS cannot write its log: {why}; set ROS_LOG_DIR to a folder that can '
            'be written'
        )
    if match := ARGUMENT_ERROR.search(reason):
        return f'ROS cannot read the {match[1]}; correct this argument'
    if match := UNKNOWN_ARGUMENTS.fullmatch(reason):
        return f'ROS arguments: got {match[1]}, which ROS does not know; remove it'
    return f'ROS does not start: {reason}; correct the ROS arguments or environment variables'
