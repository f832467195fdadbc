"""The errors of p2d_node.

A message names the parameter or file, the value got, the allowed values and the next step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

MAX_QUOTE_CHARACTERS = 200


def quote(value: object) -> str:
    """Return an input for a message: its repr, cut so that no input can flood a log."""
    text = repr(value)
    if len(text) <= MAX_QUOTE_CHARACTERS:
        return text
    return f'{text[:MAX_QUOTE_CHARACTERS]}... ({len(text)} characters)'


CONTROL_CHARACTERS = dict.fromkeys((*range(32), *range(127, 160), 0x2028, 0x2029), ' ')


class P2dError(Exception):
    """Base class of the errors that p2d_node raises; its text is one line."""

    def __str__(self) -> str:
        """Return the message with spaces for the control characters that an input brought in."""
        return super().__str__().translate(CONTROL_CHARACTERS)


class ConfigError(P2dError):
    """A parameter, a file or a folder that the user named cannot be used."""


class BackendUnavailableError(P2dError):
    """A library or device that the configuration requires is not available."""


class EngineMismatchError(P2dError):
    """An engine does not match this machine, this model or its own manifest."""


class ImageDecodeError(P2dError):
    """Camera frames that are not images that can be used.

    Attributes:
        broken: Camera to what is wrong with its frame.
    """

    def __init__(self, broken: Mapping[str, str]) -> None:
        """Name the cameras and the reasons."""
        super().__init__('; '.join(f'{camera}: {reason}' for camera, reason in broken.items()))
        self.broken = dict(broken)

    @classmethod
    def of(cls, camera: str, reason: str) -> ImageDecodeError:
        """Return the error of the frame of one camera."""
        return cls({camera: reason})


class InferenceError(P2dError):
    """A model stage failed on one sweep."""


class DeviceLostError(InferenceError):
    """Nothing can run on the device any more; only a new process can use it again."""


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
