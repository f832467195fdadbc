"""Ctrl-C in a moment in which Python cannot raise it."""

from __future__ import annotations

from collections.abc import Callable
import signal
import sys
import threading
from typing import Any

AGAIN_S = 0.01
"""After which an interrupt that was lost is raised again."""


def raise_lost_interrupts_again() -> None:
    """Raise KeyboardInterrupt again that came in a finaliser, or in a hook of os.fork.

    Python drops it there and prints a traceback. Imports have finalisers, too.
    """
    if not isinstance(sys.unraisablehook, _RaiseAgain):
        sys.unraisablehook = _RaiseAgain(sys.unraisablehook)


class _RaiseAgain:
    def __init__(self, show: Callable[[Any], object]) -> None:
        self._show = show

    def __call__(self, unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._show(unraisable)
            return
        timer = threading.Timer(AGAIN_S, _interrupt)
        timer.daemon = True
        timer.start()


def _interrupt() -> None:
    main_thread = threading.main_thread().ident
    if main_thread is not None:
        signal.pthread_kill(main_thread, signal.SIGINT)
