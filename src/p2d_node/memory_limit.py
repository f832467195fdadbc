"""Limits the memory of a command, so that nothing that it reads can take that of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import math
from pathlib import Path
import resource

SHARE = 0.9
"""Of the memory that programs may still allocate; the rest is left to the others."""


def available_bytes() -> float:
    """Return what Linux estimates that programs may still allocate; infinity if unknown."""
    path = Path('/proc/meminfo')
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        if line.startswith('MemAvailable:'):
            return int(line.split()[1]) * 1024.0
    return math.inf


@contextmanager
def limited_memory() -> Iterator[float]:
    """Limit the memory of this process, and of each that it starts meanwhile, for the body.

    The limit is `RLIMIT_DATA`: address space that is only reserved, files that are mapped and
    memory that is shared do not count. One that the user has set (`ulimit -d`) stays.

    Yields:
        The limit in bytes; infinity if none can be set.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    available = available_bytes()
    if soft != resource.RLIM_INFINITY or available == math.inf:
        yield math.inf if soft == resource.RLIM_INFINITY else float(soft)
        return
    limit = int(SHARE * available)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield float(limit)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def lift_limit() -> None:
    """Take the limit of the parent from this process, up to the hard limit (`ulimit -Hd`)."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def is_out_of_memory(err: BaseException) -> bool:
    """Return whether an error says that memory could not be allocated."""
    # torch has no class for memory of the processor, ONNX Runtime passes on that of C++.
    texts = ('allocate memory', 'bad_alloc')
    return isinstance(err, MemoryError) or any(text in str(err) for text in texts)
