"""A live table of what a running drive node answers, and how fast."""

from __future__ import annotations

import os
import time

from p2d_node.cli.screen import say
from p2d_node.cli.table import LiveTable, REFRESH_S
from p2d_node.cli.verbs.node import WatchOptions
from p2d_node.errors import ConfigError
from p2d_node.ros.answer_watcher import AnswerWatcher
from p2d_node.ros.spinning import spinning_node
from rclpy.exceptions import NameValidationException
from rclpy.validate_full_topic_name import validate_full_topic_name


def run(options: WatchOptions) -> int:
    """Show until Ctrl-C or `--duration`; returns the exit code."""
    _check_node_name(options.node)
    end_s = None if options.duration_s is None else time.monotonic() + options.duration_s
    with spinning_node('p2d_watch') as node:
        watcher = AnswerWatcher(node, options.node)
        with LiveTable(watcher, json_lines=options.json) as table:
            while end_s is None or time.monotonic() < end_s:
                table.update()
                time.sleep(REFRESH_S)
        if not watcher.answers:
            domain = os.environ.get('ROS_DOMAIN_ID', '0')
            say(
                f'p2d watch: no answer from {options.node} so far; is it active, and is its '
                f'ROS_DOMAIN_ID {domain}?',
                error=True,
            )
    return 0


def _check_node_name(name: str) -> None:
    try:
        validate_full_topic_name(f'{name}/answer')
    except NameValidationException as err:
        raise ConfigError(
            f'node: got {name!r}, allowed: the full name of a node, such as /p2d or /truck/p2d'
        ) from err
