"""Runs nodes and executors until their context is shut down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import threading

from p2d_node.ros.rcl_errors import init_rclpy, node_creation_errors
import rclpy
from rclpy.context import Context
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions


class ShutdownInTransition(BaseException):
    """Ends a lifecycle transition after a signal; rclpy would log and discard an `Exception`."""


@contextmanager
def ended_by_shutdown(context: Context) -> Iterator[None]:
    """Leave the block without an error if `context` is shut down, for example by SIGTERM.

    Any call of rclpy may raise after that.
    """
    try:
        yield
    except (ExternalShutdownException, ShutdownInTransition):
        pass
    except RuntimeError:  # rclpy's RCLError is one
        if context.ok():
            raise


def spin_until_shutdown(executor: Executor, context: Context) -> None:
    """Spin until the executor or its context is shut down."""
    with ended_by_shutdown(context):
        executor.spin()


@contextmanager
def spinning_node(name: str) -> Iterator[Node]:
    """Yield a node whose callbacks run in a background thread.

    rclpy installs no signal handlers, so Ctrl-C raises KeyboardInterrupt in the caller.

    Raises:
        ConfigError: ROS refuses the environment variables.
    """
    init_rclpy(signal_handler_options=SignalHandlerOptions.NO)
    try:
        with node_creation_errors():
            node = rclpy.create_node(name)
        with _spinning(node):
            yield node
    finally:
        rclpy.try_shutdown()


@contextmanager
def _spinning(node: Node) -> Iterator[None]:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(
        target=spin_until_shutdown, args=(executor, node.context), name='spin', daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        executor.shutdown(timeout_sec=1.0)
        thread.join(timeout=2.0)
        node.destroy_node()
