"""Checks the parameters in ROS arguments and in the files that they name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import errno
import itertools
from pathlib import Path

from p2d_node.durable_files import read_file
from p2d_node.errors import ConfigError
from p2d_node.parameter_yaml import check_parameter_yaml
from p2d_node.yaml_text import MAX_YAML_BYTES

ARGUMENTS_START, ARGUMENTS_END = '--ros-args', '--'
FILE_OPTION, VALUE_OPTIONS = '--params-file', ('-p', '--param')


def check_parameter_sources(args: Sequence[str]) -> None:
    """Check the parameters of a command line before rcl reads them, which can take hours.

    A file that is missing passes: rcl says that it cannot be read.

    Args:
        args: Command line with ROS arguments.

    Raises:
        ConfigError: A file is too large, or as `check_parameter_yaml`.
    """
    for option, value in _options(args):
        if option == FILE_OPTION:
            check_parameter_yaml(_read(value), value)
        elif option in VALUE_OPTIONS:
            name, _, text = value.partition(':=')
            check_parameter_yaml(text, name)


def _read(name: str) -> bytes:
    try:
        return read_file(Path(name), MAX_YAML_BYTES)
    except OSError as err:
        if err.errno != errno.EFBIG:
            return b''
        raise ConfigError(f'{name}: {err.strerror}; name a parameter file') from err


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each ROS argument with the one that follows it."""
    is_ros = False
    for argument, following in itertools.pairwise(args):
        if argument in (ARGUMENTS_START, ARGUMENTS_END):
            is_ros = argument == ARGUMENTS_START
        elif is_ros:
            yield argument, following
