"""Memory, threads and open files of a process, from /proc."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KIB_PER_MIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFigures:
    """What a process uses at one moment.

    Attributes:
        memory_mib: Resident memory.
        threads: Number of threads.
        files: Number of open file descriptors.
    """

    memory_mib: float
    threads: int
    files: int


def read_figures(pid: int) -> ProcessFigures | None:
    """Return what the process uses; None if it has ended."""
    folder = Path('/proc') / str(pid)
    try:
        lines = (folder / 'status').read_text().splitlines()
        fields = dict(line.split(':', 1) for line in lines)
        return ProcessFigures(
            memory_mib=int(fields['VmRSS'].split()[0]) / KIB_PER_MIB,
            threads=int(fields['Threads']),
            files=len(list((folder / 'fd').iterdir())),
        )
    except (OSError, KeyError):  # gone, or a zombie, which has no memory
        return None
