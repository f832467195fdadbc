"""The errors of p2d_node.

A message names the parameter or file, the value got, the allowed values and the next step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class P2dError(Exception):
    """Base class of the errors that p2d_node raises."""


class ConfigError(P2dError):
    """A parameter, a file or a folder that the user named cannot be used."""


class BackendUnavailableError(P2dError):
    """A library or device that the configuration requires is not available."""


class EngineMismatchError(P2dError):
    """An engine does not match this machine, this model or its own manifest."""


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
def checkpoint_faults(
    folder: object, *, part: str = 'the checkpoint', parameter: str = 'model'
) -> Iterator[None]:
    """Turn the errors of libraries that load a checkpoint into a ConfigError.

    The libraries have no common error class for settings of a wrong type.

    Args:
        folder: The checkpoint.
        part: The part of the checkpoint that is loaded.
        parameter: The parameter that names the checkpoint; empty: the message has no prefix.

    Raises:
        ConfigError: In place of any error but a P2dError.
    """
    try:
        yield
    except P2dError:
        raise
    except Exception as err:
        prefix = f'{parameter}: ' if parameter else ''
        reason = (str(err).strip().splitlines() or ['no reason given'])[0]
        raise ConfigError(
            f'{prefix}{folder}: {part} does not load: {type(err).__name__}: {reason}; copy its '
            'files again'
        ) from err


@contextmanager
def format_faults(path: Path, name: str, needed: str) -> Iterator[None]:
    """Translate the errors of code that expects JSON content in a certain format.

    Args:
        path: File or folder of the content.
        name: Name of the format.
        needed: What the user should provide or do.

    Raises:
        ConfigError: The content has another format: a key or a value is missing or of a wrong
            type.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as err:
        raise ConfigError(f'{path}: not {name}: {type(err).__name__}: {err}; {needed}') from err
