"""Checks the parameters in ROS arguments and in the files that they name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import itertools
from pathlib import Path

from p2d_node.parameter_yaml import check_parameter_yaml

ARGUMENTS_START, ARGUMENTS_END = '--ros-args', '--'
FILE_OPTION, VALUE_OPTIONS = '--params-file', ('-p', '--param')


def check_parameter_sources(args: Sequence[str]) -> None:
    """Check the parameters of a command line that rcl has accepted.

    Args:
        args: Command line with ROS arguments.

    Raises:
        ConfigError: As `check_parameter_yaml`.
    """
    for option, value in _options(args):
        if option == FILE_OPTION:
            check_parameter_yaml(Path(value).read_bytes(), value)
        elif option in VALUE_OPTIONS:
            name, _, text = value.partition(':=')
            check_parameter_yaml(text, name)


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each ROS argument with the one that follows it."""
    is_ros = False
    for argument, following in itertools.pairwise(args):
        if argument in (ARGUMENTS_START, ARGUMENTS_END):
            is_ros = argument == ARGUMENTS_START
        elif is_ros:
            yield argument, following
