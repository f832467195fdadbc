"""Notices that the memory of the process has grown.

Fast DDS keeps buffers for messages that the node never sees: of a frame whose publisher ends in
the middle of it, or of a text that another one replaces at once. A new subscription frees them.
"""

from __future__ import annotations

from pathlib import Path
import resource
import time

GROWN_BYTES = 512 << 20


class MemoryGrowth:
    """Compares the memory of the process with what it was. Any thread may read `grown_ns`.

    Attributes:
        grown_ns: When it was last found to have grown, steady clock; 0: never.
    """

    def __init__(self) -> None:
        """Begin without a memory to compare with."""
        self.grown_ns = 0
        self._usual_bytes: int | None = None

    def begin(self) -> None:
        """Compare with the memory at the next `check`: a model was loaded, for example."""
        self._usual_bytes = None

    def check(self) -> None:
        """Compare; after growth the next check begins anew, with what is left then."""
        num_bytes = _private_bytes()
        usual = self._usual_bytes
        if usual is None:
            self._usual_bytes = num_bytes
        elif num_bytes > usual + GROWN_BYTES:
            self.grown_ns = time.monotonic_ns()
            self._usual_bytes = None
        else:
            self._usual_bytes = min(usual, num_bytes)


def _private_bytes() -> int:
    """Return the memory that only this process uses, without mapped files."""
    _, resident, shared, *_ = Path('/proc/self/statm').read_text(encoding='ascii').split()
    return (int(resident) - int(shared)) * resource.getpagesize()


GROWTH = MemoryGrowth()
"""Of this process; the health thread checks it, subscriptions read it."""
