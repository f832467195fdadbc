"""Starts the drive node. Ctrl-C while its libraries are imported ends it without a word."""

from __future__ import annotations

import signal
import sys

from p2d_node.library_logs import silence_import_warnings


def main() -> int:
    """Run the node; returns the exit status."""
    silence_import_warnings()
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from p2d_node.ros import drive_node

    signal.signal(signal.SIGINT, previous)
    return drive_node.main()


if __name__ == '__main__':
    sys.exit(main())
