"""Ctrl-C between two operations on the storage, not in the middle of one."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 2
"""A worker may hear of one Ctrl-C twice: from the terminal, and from the process it works for."""


class StopRequest:
    """While entered, a signal to stop only leaves a note; one too many interrupts at once.

    An interrupt inside a database or a lock file would leave them to their own devices. Enter it
    in the main thread; `check` is what interrupts, where it is safe.
    """

    def __init__(self) -> None:
        """Nothing was asked for so far."""
        self._num_signals = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        """Listen to signals."""
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave signals to whoever had them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1
        if self._num_signals > PATIENCE:
            raise KeyboardInterrupt

    def is_noted(self) -> bool:
        """Tell whether work should end soon."""
        return self._num_signals > 0

    def check(self) -> None:
        """Raise `KeyboardInterrupt` where work should end."""
        if self.is_noted():
            raise KeyboardInterrupt
