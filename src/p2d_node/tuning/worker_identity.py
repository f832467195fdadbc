"""Who works on a trial, and whether that process still lives, as far as this machine can tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
import os
from pathlib import Path
import secrets
import socket
from typing import Any

START_TIME_FIELD = 19
"""Of /proc/<pid>/stat, counted after the command's closing bracket (proc(5), starttime)."""


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """One working process.

    Attributes:
        host: The machine and its space of process numbers: containers have numbers of their own.
        pid: Number of the process there.
        started: When it began, in clock ticks since boot: numbers of processes are used again.
        token: Different for every identity, also within one process.
    """

    host: str
    pid: int
    started: int | None
    token: str

    @classmethod
    def of_this_process(cls) -> WorkerIdentity:
        """Return a new identity for this process."""
        pid = os.getpid()
        return cls(_host(), pid, _start_time(pid), secrets.token_hex(4))

    def to_json(self) -> dict[str, Any]:
        """Return what is stored with a trial."""
        return asdict(self)

    def knows_fate_of(self, other: Mapping[str, Any]) -> bool:
        """Tell whether the process of another identity would be visible from here."""
        return other.get('host') == self.host

    def is_alive(self, other: Mapping[str, Any]) -> bool:
        """Tell whether the process of an identity on this machine still runs."""
        started = _start_time(int(other['pid']))
        return started is not None and started == other.get('started')


def _host() -> str:
    try:
        boot = Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()
        namespace = os.readlink('/proc/self/ns/pid')
    except OSError:
        boot = namespace = ''
    return f'{socket.gethostname()} {boot} {namespace}'.strip()


def _start_time(pid: int) -> int | None:
    """Return when a process began, or None where there is none; a zombie counts as gone."""
    try:
        stat = Path(f'/proc/{pid}/stat').read_text(encoding='utf-8', errors='replace')
    except OSError:
        return None
    state, *fields = stat.rpartition(')')[2].split()
    return None if state in 'ZX' else int(fields[START_TIME_FIELD - 1])
