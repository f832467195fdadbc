"""Runs the drive node as a child that ends with its parent, however the parent ends.

The command line is that of the node, with the id of the parent process before it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from p2d_node.memory_limit import lift_limit

PR_SET_PDEATHSIG = 1
"""From <sys/prctl.h>: the signal that this process gets when its parent ends."""


def main() -> int:
    """Run the node; returns its exit status."""
    end_with_parent(int(sys.argv.pop(1)))
    lift_limit()  # a node has none in the car either, and the driver of its GPU may map much
    from p2d_node.ros import drive

    return drive.main()


def end_with_parent(parent: int) -> None:
    """Let Linux kill this process when the process `parent` ends; SIGKILL leaves it no say.

    Args:
        parent: Process id; if it has ended already, this process ends at once.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
