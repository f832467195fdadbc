"""A node of our own that spins in the background while the foreground does something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import threading

import rclpy
from rclpy.context import Context
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions


@contextmanager
def ended_by_shutdown(context: Context) -> Iterator[None]:
    """Leave the block when `context` is shut down, as SIGTERM does, whatever call that strikes."""
    try:
        yield
    except ExternalShutdownException:
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
    """Yield a node whose callbacks run in a thread of their own.

    Signals stay with the caller, so that Ctrl-C raises KeyboardInterrupt there.
    """
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(name)
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    thread = threading.Thread(
        target=spin_until_shutdown, args=(executor, node.context), name='spin', daemon=True
    )
    thread.start()
    try:
        yield node
    finally:
        executor.shutdown(timeout_sec=1.0)
        thread.join(timeout=2.0)
        node.destroy_node()
        rclpy.try_shutdown()
