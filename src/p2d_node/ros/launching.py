"""What both launch files check: the names of their arguments, and how a process ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import itertools
from pathlib import Path
import signal

from p2d_node.config_parameters import closest_name
from p2d_node.errors import ConfigError, P2dError, quote

PACKAGE = 'p2d_node'
LAUNCH_OPTIONS = ('launch-prefix', 'launch-prefix-filter')
"""Options of `ros2 launch` that it hands over as arguments."""

EXIT_CODES_OF_NO_FAULT = (0, -signal.SIGINT, -signal.SIGTERM)
"""A shutdown, and a signal during the imports."""


def check_argument_names(
    given: Iterable[str], known: Iterable[str], launch_file: str, command: Sequence[str]
) -> None:
    """Refuse launch arguments that do not exist, which `ros2 launch` would ignore.

    Args:
        given: The arguments of the launch, as NAME:=VALUE.
        known: The names that the launch file declares.
        launch_file: The launch file.
        command: Command line of the process. If it names another launch file, which includes
            this one, the arguments are that file's.

    Raises:
        ConfigError: An argument that does not exist.
    """
    if not _is_launched(launch_file, command):
        return
    known = sorted(known)
    for text in given:
        name = text.partition(':=')[0]
        if name not in (*known, *LAUNCH_OPTIONS):
            close = closest_name(name, known)
            hint = f'did you mean {close}?' if close else f'allowed: {", ".join(known)}'
            raise ConfigError(f'{quote(name)}: there is no such launch argument; {hint}')


def _is_launched(launch_file: str, command: Sequence[str]) -> bool:
    path = Path(launch_file)
    for before, word in itertools.pairwise(command):
        if Path(word).name == path.name:
            return before == PACKAGE or Path(word).resolve() == path.resolve()
    return False


def check_exit(what: str, returncode: int, *, is_shutdown: bool) -> None:
    """Raise `P2dError` if a process has failed: the launch then ends too, with exit code 1.

    Args:
        what: The process, for the message.
        returncode: Its exit code; minus a signal.
        is_shutdown: Whether the launch is ending already.
    """
    if returncode not in EXIT_CODES_OF_NO_FAULT and not is_shutdown:
        raise P2dError(f'{what} ended with exit code {returncode}; its message above says why')


def full_node_name(pushed_namespace: str, namespace: str, name: str) -> str:
    """Return the full name that a node of a launch file gets.

    Args:
        pushed_namespace: From `PushRosNamespace`; empty: none.
        namespace: The node's own; a relative one is below the pushed one.
        name: The node's name.
    """
    above = '' if namespace.startswith('/') else pushed_namespace
    return '/'.join(['', *filter(None, f'{above}/{namespace}/{name}'.split('/'))])
