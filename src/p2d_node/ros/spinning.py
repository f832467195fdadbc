"""Runs nodes and executors until their context is shut down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import threading
import time

from p2d_node.ros.quiet_node import ToolNode
from p2d_node.ros.rcl_errors import init_rclpy, node_creation_errors
from p2d_node.ros.throttled_log import ThrottledLog
from p2d_node.ros.unexpected_error import unexpected_error
import rclpy
from rclpy.context import Context
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

ERROR_PAUSE_S = 0.01
"""Keeps an error that comes again and again from using a whole core."""


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


def spin_until_shutdown(executor: Executor, node: Node) -> None:
    """Spin until the executor or the context of `node` is shut down.

    A callback that raises, such as rclpy's own for a malformed request, costs that call only. So
    does what another thread or a callback has destroyed while the executor waits for it.
    """
    log = ThrottledLog(node.get_logger())
    with ended_by_shutdown(node.context):
        while not _spin(executor, node.context, log):
            pass


def _spin(executor: Executor, context: Context, log: ThrottledLog) -> bool:
    """Spin until a shutdown or until a callback raises; returns whether it was a shutdown."""
    try:
        executor.spin()
    except ExternalShutdownException:
        raise
    except Exception as err:
        if not context.ok():
            raise
        if executor._is_shutdown:  # a callback that ends meanwhile still uses the executor
            return True
        time.sleep(ERROR_PAUSE_S)
        log.warn(f'a request or callback failed and was dropped: {unexpected_error(err)}')
        return False
    return True


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
            node = ToolNode(name)
        with _spinning(node):
            yield node
    finally:
        rclpy.try_shutdown()


@contextmanager
def _spinning(node: Node) -> Iterator[None]:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(
        target=spin_until_shutdown, args=(executor, node), name='spin', daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        executor.shutdown(timeout_sec=1.0)
        thread.join(timeout=2.0)
        node.destroy_node()
