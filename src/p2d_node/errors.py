"""The errors of p2d_node: a message says what, the value got, what is allowed, the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class P2dError(Exception):
    """Base of every error that p2d_node raises on purpose."""


class ConfigError(P2dError):
    """A parameter, a file or a folder that the user named cannot be used."""


class BackendUnavailableError(P2dError):
    """A library or device that the configuration asks for is not there."""


class EngineMismatchError(P2dError):
    """A built engine does not fit this machine, this model or its own manifest."""


class ImageDecodeError(P2dError):
    """The bytes of one camera frame are not an image that can be used.

    Attributes:
        camera: Name of the camera; None if the error is not about one camera.
    """

    def __init__(self, message: str, *, camera: str | None = None) -> None:
        """Keep the message and the camera."""
        super().__init__(message)
        self.camera = camera


class InferenceError(P2dError):
    """A model stage failed on one sweep."""


@contextmanager
def checkpoint_faults(folder: Path) -> Iterator[None]:
    """Name the checkpoint in `folder` as the cause of whatever a library makes of its files.

    Settings with values of a wrong kind end in faults without a common class.

    Raises:
        ConfigError: In place of anything that is not raised on purpose.
    """
    try:
        yield
    except P2dError:
        raise
    except Exception as err:
        reason = (str(err).strip().splitlines() or ['no reason given'])[0]
        raise ConfigError(
            f'model: {folder}: does not load: {type(err).__name__}: {reason}; copy the '
            'checkpoint again'
        ) from err
