"""Entry point of the drive node: starts it, runs it until it is told to stop, and ends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
import gc
import itertools
import os
import signal
import sys
from typing import TYPE_CHECKING

from p2d_node.interrupts import raise_lost_interrupts_again
from p2d_node.library_settings import prepare_libraries
from p2d_node.ros.malloc_settings import share_freed_memory
from p2d_node.ros.missing_package import explain_missing_package
from p2d_node.ros.systemd import notify_systemd, READY, STOPPING

if TYPE_CHECKING:
    from p2d_node.ros.drive_node import DriveNode
    from rclpy.executors import SingleThreadedExecutor

EXIT_OK = 0
EXIT_FAULT = 1
EXIT_BAD_INPUT = 2

UNKNOWN_ARGUMENTS = (
    'drive: got {}, allowed: ROS arguments, such as drive --ros-args --params-file '
    'config/drive.yaml -p NAME:=VALUE; docs/parameters.md lists the parameters'
)


def main(args: Sequence[str] | None = None) -> int:
    """Run the drive node.

    Args:
        args: Command line with the ROS arguments; None: that of the process.

    Returns:
        The exit status: 0 after a shutdown, 1 after a fault while the node was active, 2 if the
        node cannot start. The log says why.
    """
    prepare_libraries()
    share_freed_memory()
    raise_lost_interrupts_again()
    try:
        with _silent_interrupt():
            from p2d_node.errors import P2dError
            from p2d_node.ros.drive_node import DriveNode
            from p2d_node.ros.rcl_errors import init_rclpy
            import rclpy
    except ModuleNotFoundError as err:
        sys.stderr.write(f'p2d: {explain_missing_package(err.name or "rclpy")}\n')
        return EXIT_BAD_INPUT
    words = (sys.argv if args is None else args)[1:]
    if unknown := list(itertools.takewhile(lambda word: word != '--ros-args', words)):
        sys.stderr.write(f'{UNKNOWN_ARGUMENTS.format(" ".join(unknown))}\n')
        return EXIT_BAD_INPUT
    try:
        init_rclpy(args)
        created = _create(DriveNode)
    except P2dError as err:
        rclpy.logging.get_logger('p2d').fatal(str(err))
        _shut_down()
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        _shut_down()
        return EXIT_OK
    return EXIT_OK if created is None else _run(*created)


def _create(node_class: type[DriveNode]) -> tuple[DriveNode, SingleThreadedExecutor] | None:
    """Return a node and its executor; None if a signal shut rclpy down and made them raise."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    class Executor(SingleThreadedExecutor):
        _sigint_gc = None  # __del__ reads it, also if __init__ raised before it set it

    try:
        return node_class(), Executor()
    except Exception:
        if rclpy.ok():
            raise
        return None


@contextmanager
def _silent_interrupt() -> Iterator[None]:
    """Let Ctrl-C end the process without a traceback while libraries are imported."""
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, previous)


def _run(node: DriveNode, executor: SingleThreadedExecutor) -> int:
    """Start the node, spin it until a shutdown, and destroy it; returns the exit status."""
    from p2d_node.errors import P2dError
    from p2d_node.ros.spinning import spin_until_shutdown

    status = EXIT_OK
    try:
        executor.add_node(node)
        node.on_fault_reported = lambda: executor.shutdown(timeout_sec=0.0)
        if node.autostart:
            node.start()
        notify_systemd(READY)
        spin_until_shutdown(executor, node)
        status = EXIT_FAULT if node.fault else EXIT_OK
    except P2dError:  # the transition that failed has logged it
        status = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        pass
    finally:
        _end(node, executor, status)
    return status


def _end(node: DriveNode, executor: SingleThreadedExecutor, status: int) -> None:
    """Stop and destroy the node. Ends the process if the model is still busy after that."""
    notify_systemd(STOPPING)
    # A second Ctrl-C must not interrupt the shutdown.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    has_stopped = node.stop_working()
    executor.shutdown(timeout_sec=0.2)
    node.destroy_node()
    _shut_down()
    if not has_stopped:
        # A kernel that runs for seconds cannot be interrupted; the process must still end now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _shut_down() -> None:
    import rclpy

    rclpy.try_shutdown()
    # Without this the interpreter spends a second on garbage collection at its end.
    gc.freeze()


if __name__ == '__main__':
    sys.exit(main())
