"""Tells systemd that the node is ready, lives or stops; without systemd nothing happens."""

from __future__ import annotations

from contextlib import suppress
import os
import socket

READY = 'READY=1'
LIVES = 'WATCHDOG=1'
STOPPING = 'STOPPING=1'


def notify_systemd(state: str) -> None:
    """Send `state` to the service manager, as sd_notify(3) does.

    Does not block. A manager that cannot be reached is no error of the node: its watchdog acts.

    Args:
        state: `READY`, `LIVES` or `STOPPING`.
    """
    address = os.environ.get('NOTIFY_SOCKET', '')
    if not address:
        return
    if address.startswith('@'):  # a name without a file, of Linux
        address = '\0' + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, suppress(OSError):
        channel.setblocking(False)
        channel.sendto(state.encode(), address)
