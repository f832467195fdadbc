"""A drive node in a process of its own, a bag played to it over DDS, and its answers watched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from p2d_node.bags.reading import BagReader
from p2d_node.cli.watch import LiveTable, REFRESH_S
import yaml

SUBSCRIBE_TIMEOUT_S = 300.0
"""A large checkpoint takes its time to load."""

LAST_ANSWER_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 4.0
DOMAINS = range(1, 101)
"""ROS domains with ports that no system uses otherwise."""


def isolate() -> None:
    """Keep what follows to this machine and away from other ROS nodes on it."""
    os.environ.setdefault('ROS_DOMAIN_ID', str(DOMAINS[os.getpid() % len(DOMAINS)]))
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    print(f'ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]} (to look with rqt or ros2 topic echo)')


@contextmanager
def drive_node(
    parameters: Mapping[str, Any], folder: Path, log_file: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the drive node in a process of its own; it is gone when the block is left.

    Args:
        parameters: ROS parameters of the node.
        folder: For the parameter file.
        log_file: Gets what the node says.
    """
    from p2d_node.ros.dds_profile import use_shipped_profiles

    use_shipped_profiles()
    values = {
        'use_sim_time': True,
        # Sweeps may be seconds apart, and a busy machine may take its time to receive one.
        'sync': {'deadline_ms': 1000.0},
        **parameters,
    }
    file = folder / 'node.yaml'
    file.write_text(yaml.safe_dump({'/**': {'ros__parameters': values}}), encoding='utf-8')
    command = [sys.executable, '-m', 'p2d_node.ros.drive', '--ros-args']
    with log_file.open('wb') as log:
        process = subprocess.Popen(
            [*command, '--params-file', str(file)],
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C on the terminal goes to us alone; we stop the node in order.
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGINT, signal.SIGKILL):
        process.send_signal(sign)
        try:
            process.wait(STOP_TIMEOUT_S)
            return
        except subprocess.TimeoutExpired:
            continue


def play_and_watch(
    bag: Path, node_process: subprocess.Popen[bytes], rate: float, *, pictures: bool
) -> tuple[Any, bool]:
    """Play the bag and show the answers; returns the watcher and whether the last sweep got one.

    `pictures` asks the node for its pictures of kept tokens too, which costs it some time.
    """
    from p2d_node.ros.answer_watcher import AnswerWatcher
    from p2d_node.ros.replay import Replayer, ReplayOptions
    from p2d_node.ros.spinning import spinning_node

    stop = threading.Event()
    with BagReader(bag) as reader, spinning_node('p2d_player') as node:
        watcher = AnswerWatcher(node, pictures=pictures)
        options = ReplayOptions(rate=rate, clock=True, wait_s=SUBSCRIBE_TIMEOUT_S)
        replayer = Replayer(node, reader, options)
        last_ns = reader.start_ns + reader.duration_ns

        def must_stop() -> bool:
            return stop.is_set() or node_process.poll() is not None

        def play() -> None:
            if replayer.wait_for_subscribers(must_stop):
                replayer.play(must_stop)

        player = threading.Thread(target=play, name='replay', daemon=True)
        player.start()
        try:
            with LiveTable(watcher) as table:
                answered = _wait_for_answers(watcher, player, node_process, last_ns, table)
        finally:
            stop.set()
            player.join(timeout=STOP_TIMEOUT_S)
    return watcher, answered


def _wait_for_answers(
    watcher: Any,
    player: threading.Thread,
    node_process: subprocess.Popen[bytes],
    last_ns: int,
    table: LiveTable,
) -> bool:
    """Show answers until the sweep at `last_ns` is answered or nothing more can come."""
    sweep_ns = 100_000_000  # the reference camera exposes at most this long before the last one
    end_s: float | None = None
    while node_process.poll() is None:
        table.update()
        timings = watcher.timings
        if timings and (watcher.picture is not None or not watcher.wants_pictures):
            stamp = timings[-1].header.stamp
            if stamp.sec * 1_000_000_000 + stamp.nanosec >= last_ns - sweep_ns:
                return True
        if not player.is_alive():
            end_s = end_s or time.monotonic() + LAST_ANSWER_TIMEOUT_S
            if time.monotonic() >= end_s:
                return False
        time.sleep(REFRESH_S)
    return False
