"""Delays Ctrl-C until the worker is between two operations on the storage."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 2
"""One Ctrl-C can reach a worker twice: from the terminal, and from its parent process."""


class StopRequest:
    """While entered, SIGINT and SIGTERM are only noted; after `PATIENCE` of them one interrupts.

    An interrupt in the middle of a database operation could leave it incomplete. Enter it in the
    main thread, and call `check` where an interrupt is safe.
    """

    def __init__(self) -> None:
        """Start without a signal."""
        self._num_signals = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        """Install the signal handlers."""
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1
        if self._num_signals > PATIENCE:
            raise KeyboardInterrupt

    def is_noted(self) -> bool:
        """Return whether a signal has arrived."""
        return self._num_signals > 0

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if a signal has arrived."""
        if self.is_noted():
            raise KeyboardInterrupt
