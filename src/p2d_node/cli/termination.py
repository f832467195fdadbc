"""Makes the signals that end a program act as Ctrl-C, so that it cleans up."""

from __future__ import annotations

import signal

from p2d_node.interrupts import raise_lost_interrupts_again


def end_as_by_ctrl_c() -> None:
    """Let SIGTERM, and SIGHUP of a closed terminal, raise KeyboardInterrupt as SIGINT does.

    A shell that starts a program in the background lets it ignore SIGINT; that is undone. That
    `nohup` lets it ignore SIGHUP stays.
    """
    raise_lost_interrupts_again()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
