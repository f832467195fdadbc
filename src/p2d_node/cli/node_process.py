"""Runs a drive node in a process of its own, plays a bag to it over DDS and collects answers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import Any, BinaryIO

from p2d_node.bags.reading import BagReader
from p2d_node.cli.screen import say
from p2d_node.cli.table import LiveTable, REFRESH_S
from p2d_node.ros.answer_watcher import AnswerWatcher
from p2d_node.ros.conversions import to_nanoseconds
from p2d_node.ros.dds_profile import discovery_environment, use_shipped_profiles
from p2d_node.ros.replay import Replayer, ReplayOptions
from p2d_node.ros.spinning import spinning_node
import yaml

SUBSCRIBE_TIMEOUT_S = 300.0
"""Longest wait for the node to subscribe; a large checkpoint loads for minutes."""

LAST_ANSWER_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 4.0
MAX_SWEEP_NS = 100_000_000
"""The reference camera exposes at most this long before the last camera of its sweep."""

DOMAINS = range(1, 101)
"""ROS domains whose ports do not overlap with the ephemeral ports of Linux."""

START = (
    'import sys; sys.path[:] = filter(None, sys.path); '
    'from p2d_node.cli.child_node import main; sys.exit(main())'
)
"""Starts the node without the working folder in Python's path: it may be a data set, with files
that are named like modules."""


def isolate() -> None:
    """Limit discovery to this machine, in a ROS domain of its own unless one is set."""
    os.environ.setdefault('ROS_DOMAIN_ID', str(DOMAINS[os.getpid() % len(DOMAINS)]))
    for variable, value in discovery_environment('localhost').items():
        os.environ.setdefault(variable, value)
    say(f'ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]} (set it to use rqt or ros2 topic)')


@contextmanager
def drive_node(
    parameters: Mapping[str, Any], folder: Path, log_file: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the drive node in a process of its own, and stop it at the end of the block.

    It also ends if this process is killed. Call this from the main thread: Linux ends the node
    with the thread that starts it.

    Args:
        parameters: ROS parameters of the node.
        folder: Folder that the parameter file is written to.
        log_file: File that the output of the node is written to.
    """
    use_shipped_profiles()
    values = {
        'use_sim_time': True,
        # Sweeps may be seconds apart, and a busy machine may receive the frames of one late.
        'sync': {'deadline_ms': 1000.0},
        # A large model on a CPU is slow, and nobody drives by its answers.
        'max_sweep_s': 0.0,
        'max_answer_age_ms': 0.0,
        **parameters,
    }
    file = folder / 'node.yaml'
    file.write_text(yaml.safe_dump({'/**': {'ros__parameters': values}}), encoding='utf-8')
    command = [sys.executable, '-c', START, str(os.getpid()), '--ros-args']
    with open_log(log_file) as log:
        process = subprocess.Popen(
            [*command, '--params-file', str(file)],
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C on the terminal reaches only this process, which then stops the node.
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _stop(process)


def open_log(path: Path) -> BinaryIO:
    """Create a log; what has its name is removed, so that a link leads to no other file.

    Raises:
        OSError: The log cannot be created.
    """
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), 'wb')


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGINT, signal.SIGKILL):
        process.send_signal(sign)
        try:
            process.wait(STOP_TIMEOUT_S)
            return
        except subprocess.TimeoutExpired:
            continue


def play_and_watch(
    bag: Path,
    node_process: subprocess.Popen[bytes],
    rate: float,
    *,
    pictures: bool,
    topics: Collection[str] | None = None,
    linger_s: float = 0.0,
) -> tuple[AnswerWatcher, bool]:
    """Play a bag to the node and show its answers.

    Args:
        bag: Folder of the rosbag2.
        node_process: The drive node; its end ends the playback.
        rate: Speed, as a multiple of real time.
        pictures: True to receive the images of kept tokens too, which the node then draws.
        topics: Image topics that must have a subscriber before the start; None: all of the bag.
        linger_s: How long to listen after the last answer, seconds: diagnostics come once a
            second.

    Returns:
        The watcher with all answers, and whether the last sweep was answered.
    """
    stop = threading.Event()
    with BagReader(bag) as reader, spinning_node('p2d_player') as node:
        watcher = AnswerWatcher(node, pictures=pictures)
        options = ReplayOptions(rate=rate, clock=True, wait_s=SUBSCRIBE_TIMEOUT_S)
        replayer = Replayer(node, reader, options)
        last_ns = reader.start_ns + reader.duration_ns

        def must_stop() -> bool:
            return stop.is_set() or node_process.poll() is not None

        def play() -> None:
            if replayer.wait_for_subscribers(must_stop, topics):
                replayer.play(must_stop)

        player = threading.Thread(target=play, name='replay', daemon=True)
        player.start()
        try:
            with LiveTable(watcher) as table:
                answered = _wait_for_answers(watcher, player, node_process, last_ns, table)
            time.sleep(linger_s)
        finally:
            stop.set()
            player.join(timeout=STOP_TIMEOUT_S)
    return watcher, answered


def _wait_for_answers(
    watcher: AnswerWatcher,
    player: threading.Thread,
    node_process: subprocess.Popen[bytes],
    last_ns: int,
    table: LiveTable,
) -> bool:
    """Show answers until the sweep at `last_ns` is answered, or no more answers can come."""
    last_sweep_ns = last_ns - MAX_SWEEP_NS
    end_s: float | None = None
    while node_process.poll() is None:
        table.update()
        answered = _is_at_or_after(watcher.timings[-1:], last_sweep_ns)
        pictures = [watcher.picture] if watcher.picture is not None else []
        # The node draws the picture after the answers.
        if answered and (not watcher.wants_pictures or _is_at_or_after(pictures, last_sweep_ns)):
            return True
        if not player.is_alive():
            end_s = end_s or time.monotonic() + LAST_ANSWER_TIMEOUT_S
            if time.monotonic() >= end_s:
                return answered
        time.sleep(REFRESH_S)
    return False


def _is_at_or_after(messages: Sequence[Any], stamp_ns: int) -> bool:
    """Tell whether there is a message, and the first was captured at `stamp_ns` or later."""
    return bool(messages) and to_nanoseconds(messages[0].header.stamp) >= stamp_ns
