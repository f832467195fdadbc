"""The errors of p2d_node.

A message names the parameter or file, the value got, the allowed values and the next step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

MAX_QUOTE_CHARACTERS = 200
MAX_MESSAGE_CHARACTERS = 4000
NO_REASON = 'no reason given'


def quote(value: object) -> str:
    """Return an input for a message: its repr, cut so that no input can flood a log."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # too many digits or too deep for Python to write
        text = f'a {type(value).__name__} that is too large to show'
    if len(text) <= MAX_QUOTE_CHARACTERS:
        return text
    return f'{text[:MAX_QUOTE_CHARACTERS]}... ({len(text)} characters)'


def cut(text: str, max_characters: int) -> str:
    """Return a text for a person, shortened if it is long."""
    return text if len(text) <= max_characters else f'{text[:max_characters]}...'


CONTROLS = (*range(32), *range(127, 160), 0x2028, 0x2029)
TEXT_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
SURROGATES = range(0xD800, 0xE000)
"""Bytes of a file name that are no UTF-8: a terminal's encoding has no place for them."""

INERT = dict.fromkeys((*CONTROLS, *TEXT_DIRECTIONS), ' ') | dict.fromkeys(SURROGATES, '\ufffd')


def one_line(text: str) -> str:
    """Return a text that a terminal shows in one line, in reading order, and does not execute."""
    return text.translate(INERT)


class P2dError(Exception):
    """Base class of the errors that p2d_node raises; its text is one line."""

    def __str__(self) -> str:
        """Return the message, cut, without the control characters that an input brought in."""
        return one_line(super().__str__()[:MAX_MESSAGE_CHARACTERS])


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


def _is_panic(err: BaseException) -> bool:
    """Return whether a library in Rust panicked: its error is no `Exception`."""
    # The class cannot be imported: each library makes its own.
    return type(err).__name__ == 'PanicException'


def first_line(err: BaseException, otherwise: str = '') -> str:
    """Return the first line of an error of a library.

    Args:
        err: The error.
        otherwise: What to return if it has no text; empty: the name of its class.
    """
    return (str(err).strip() or otherwise or type(err).__name__).splitlines()[0]


@contextmanager
def panics(part: str, error: type[P2dError]) -> Iterator[None]:
    """Turn a panic of a library in Rust into an error.

    Args:
        part: What the library is.
        error: The class of the error.

    Raises:
        P2dError: Of class `error`, in place of a panic.
    """
    try:
        yield
    except BaseException as err:
        if not _is_panic(err):
            raise
        raise error(f'{part} failed: {first_line(err, NO_REASON)}; copy its files again') from err


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
    except BaseException as err:
        if not isinstance(err, Exception) and not _is_panic(err):
            raise
        prefix = f'{parameter}: ' if parameter else ''
        raise ConfigError(
            f'{prefix}{folder}: {part} does not load: {type(err).__name__}: '
            f'{first_line(err, NO_REASON)}; copy its files again'
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
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as err:
        raise ConfigError(f'{path}: not {name}: {type(err).__name__}: {err}; {needed}') from err
