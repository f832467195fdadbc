"""A node of our own that spins in the background while the foreground does something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
import threading

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions


@contextmanager
def spinning_node(name: str) -> Iterator[Node]:
    """Yield a node whose callbacks run in a thread of their own.

    Signals stay with the caller, so that Ctrl-C raises KeyboardInterrupt there.
    """
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(name)
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def spin() -> None:
        with suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin, name='spin', daemon=True)
    thread.start()
    try:
        yield node
    finally:
        executor.shutdown(timeout_sec=1.0)
        thread.join(timeout=2.0)
        node.destroy_node()
        rclpy.try_shutdown()
