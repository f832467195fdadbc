"""Real rclpy over real DDS: every test gets a ROS domain that nobody else uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import gc
import itertools
import os
import socket
import threading
from typing import Any

import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed: make setup')
pytest.importorskip('p2d_msgs', reason='ros2_ws is not built or not sourced: make test does both')

from camera_rig import CameraRig  # noqa: E402
from p2d_node.ros.answer_watcher import AnswerWatcher  # noqa: E402
from p2d_node.ros.drive_node import DriveNode  # noqa: E402
from p2d_node.ros.spinning import spin_until_shutdown  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402

DOMAINS = range(1, 101)
NEXT_DOMAIN = itertools.cycle((*DOMAINS[os.getpid() % 100 :], *DOMAINS[: os.getpid() % 100]))
"""Never the domain of the test before, whose nodes may still leave it."""

LOCK_PORT = 42_500
"""A held port per domain keeps test runs side by side apart."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if 'tests/ros' in str(item.path):
            item.add_marker(pytest.mark.ros)


@pytest.fixture
def ros_domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A ROS domain of this machine that is ours while the test runs."""
    # A destroyed lifecycle node stays in its domain until Python frees its state machine.
    gc.collect()
    for domain in itertools.islice(NEXT_DOMAIN, len(DOMAINS)):
        lock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            lock.bind(('127.0.0.1', LOCK_PORT + domain))
        except OSError:
            lock.close()
            continue
        monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
        monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        with lock:
            yield domain
        return
    pytest.fail('no free ROS domain')


@pytest.fixture
def make_context(ros_domain: int) -> Iterator[Callable[[], Any]]:
    """Makes rclpy contexts, each a DDS participant of its own as if in its own process."""
    contexts = []

    def make() -> Any:
        contexts.append(rclpy.Context())
        rclpy.init(context=contexts[-1], domain_id=ros_domain)
        return contexts[-1]

    yield make
    for context in contexts:
        rclpy.try_shutdown(context=context)


@pytest.fixture
def spin(make_context: Callable[[], Any]) -> Iterator[Callable[..., Any]]:
    """Spins a node in a thread of its own until the test is over."""
    running = []

    def start(node: Any) -> Any:
        executor = SingleThreadedExecutor(context=node.context)
        executor.add_node(node)
        thread = threading.Thread(target=spin_until_shutdown, args=(executor, node), daemon=True)
        thread.start()
        running.append((node, executor, thread))
        return node

    yield start
    for node, executor, thread in reversed(running):
        executor.shutdown(timeout_sec=2.0)
        thread.join(timeout=5.0)
        node.destroy_node()


@pytest.fixture
def node(make_context: Callable[[], Any], spin: Callable[..., Any]) -> Any:
    """The test's own node, spinning."""
    return spin(rclpy.create_node('tester', context=make_context()))


@pytest.fixture
def drive(
    make_context: Callable[[], Any], spin: Callable[..., Any], tiny_checkpoint: Any
) -> Iterator[Callable[..., DriveNode]]:
    """Starts drive nodes on the tiny checkpoint with the parameters of the test."""
    nodes = []

    def start(*, autostart: bool = True, **parameters: Any) -> DriveNode:
        values = {
            'model': str(tiny_checkpoint),
            'device': 'cpu',
            'max_new_tokens': 4,
            'questions': ['What should the ego vehicle do next?'],
            'autostart': autostart,
            # Sweeps of these tests may be seconds apart, and the machine busy.
            'sync.deadline_ms': 1000.0,
            'max_answer_age_ms': 0.0,
            **{name.replace('__', '.'): value for name, value in parameters.items()},
        }
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        drive_node = DriveNode(context=make_context(), parameter_overrides=overrides)
        nodes.append(drive_node)
        spin(drive_node)
        if autostart:
            drive_node.start()
        return drive_node

    yield start
    for drive_node in nodes:
        drive_node.stop_working()


@pytest.fixture
def rig(node: Any) -> CameraRig:
    """Six cameras that publish when the test says so."""
    return CameraRig(node)


@pytest.fixture
def watcher(node: Any) -> AnswerWatcher:
    """Collects what the drive node publishes."""
    return AnswerWatcher(node, pictures=True)
