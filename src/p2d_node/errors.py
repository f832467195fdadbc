"""The errors of p2d_node: a message says what, the value got, what is allowed, the next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class P2dError(Exception):
    """Base of every error that p2d_node raises on purpose."""


class ConfigError(P2dError):
    """A parameter, a file or a folder that the user named cannot be used."""


class BackendUnavailableError(P2dError):
    """A library or device that the configuration asks for is not there."""


class EngineMismatchError(P2dError):
    """A built engine does not fit this machine, this model or its own manifest."""


class ImageDecodeError(P2dError):
    """The bytes of one camera frame are not a picture that can be used."""


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
