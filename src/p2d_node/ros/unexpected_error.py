"""Describes an exception that is not a `P2dError`, in one line for the log."""

from __future__ import annotations

from pathlib import Path
import traceback

from p2d_node.errors import P2dError


class UnexpectedError(P2dError):
    """An exception that the program does not raise on purpose: most likely a defect.

    Attributes:
        trace: The traceback, for the debug log.
    """

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message)
        self.trace = trace


def unexpected_error(err: BaseException) -> UnexpectedError:
    """Return an error whose message says in one line what was raised and where."""
    message = ' '.join(str(err).split()) or 'no message'
    frames = traceback.extract_tb(err.__traceback__)
    where = f' ({Path(frames[-1].filename).name}:{frames[-1].lineno})' if frames else ''
    return UnexpectedError(
        f'unexpected error, please report it: {type(err).__name__}: {message}{where}',
        ''.join(traceback.format_exception(err)),
    )
