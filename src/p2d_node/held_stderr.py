"""Holds back what a library writes to stderr, which nobody needs if the library fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
import os
import sys
import tempfile

STDERR = 2


@contextmanager
def held_stderr() -> Iterator[None]:
    """Write to stderr after the body what any thread writes to it meanwhile; if it fails, nothing.

    A library in Rust writes many lines before it panics; the error that it raises says why. Use it
    from one thread at a time.
    """
    if sys.stderr is None:  # the program was started without one
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(STDERR)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), STDERR)
        try:
            yield
        except BaseException:
            held.truncate(0)
            raise
        finally:
            os.dup2(stderr, STDERR)
            os.close(stderr)
            held.seek(0)
            with suppress(OSError):  # its disk may be full
                os.write(STDERR, held.read())
