"""What a running drive node answers, and how fast: a live table, rerun, Foxglove."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, ExitStack
import os
import time

from p2d_node.cli.screen import say
from p2d_node.cli.sweep_feed import SweepFeed
from p2d_node.cli.table import LiveTable, REFRESH_S
from p2d_node.cli.verbs.node import WatchOptions
from p2d_node.errors import ConfigError
from p2d_node.ros.answer_watcher import AnswerWatcher
from p2d_node.ros.camera_frames import CameraFrames
from p2d_node.ros.spinning import spinning_node
from p2d_node.ros.throttled_log import ThrottledLog
from p2d_node.viewers.foxglove_viewer import FoxgloveViewer
from p2d_node.viewers.rerun_viewer import RerunViewer
from p2d_node.viewers.shown_sweep import Viewer
from rclpy.exceptions import NameValidationException
from rclpy.node import Node
from rclpy.validate_full_topic_name import validate_full_topic_name


def run(options: WatchOptions) -> int:
    """Show until Ctrl-C or `--duration`; returns the exit code."""
    _check_node_name(options.node)
    end_s = None if options.duration_s is None else time.monotonic() + options.duration_s
    with _viewers(options) as viewers, spinning_node('p2d_watch') as node:
        watcher = AnswerWatcher(node, options.node, pictures=bool(viewers))
        feed = _feed(node, options.node, watcher, viewers) if viewers else None
        with LiveTable(watcher, json_lines=options.json) as table:
            while end_s is None or time.monotonic() < end_s:
                table.update()
                if feed is not None:
                    feed.update()
                time.sleep(REFRESH_S)
        if not watcher.answers:
            domain = os.environ.get('ROS_DOMAIN_ID', '0')
            say(
                f'p2d watch: no answer from {options.node} so far; is it active, and is its '
                f'ROS_DOMAIN_ID {domain}?',
                error=True,
            )
    return 0


def _feed(node: Node, target: str, watcher: AnswerWatcher, viewers: Sequence[Viewer]) -> SweepFeed:
    log = ThrottledLog(node.get_logger())
    return SweepFeed(watcher, CameraFrames(node, target), viewers, log)


@contextmanager
def _viewers(options: WatchOptions) -> Iterator[list[Viewer]]:
    """Open what the options ask for, and close it at the end."""
    with ExitStack() as stack:
        viewers: list[Viewer] = []
        if options.rerun is not None:
            viewers.append(RerunViewer(options.rerun))
            stack.callback(viewers[-1].close)
        if options.foxglove:
            host, port = options.foxglove_host, options.foxglove_port
            viewers.append(FoxgloveViewer(options.node, port, host))
            stack.callback(viewers[-1].close)
            say(f'Foxglove: open a connection to ws://{host}:{port}', error=True)
            say(
                'every program and web page that reaches this address can see the cameras',
                error=True,
            )
        yield viewers


def _check_node_name(name: str) -> None:
    try:
        validate_full_topic_name(f'{name}/answer')
    except NameValidationException as err:
        raise ConfigError(
            f'node: got {name!r}, allowed: the full name of a node, such as /p2d or /truck/p2d'
        ) from err
