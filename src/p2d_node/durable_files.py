"""Reads files of a limited size; a file it writes has the old content or the new, never a part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
import errno
import json
import os
from pathlib import Path
import re
import secrets
import stat
import tempfile
from typing import Any

from p2d_node.errors import ConfigError, P2dError, quote
from p2d_node.sparse_files import is_sparse

MAX_SETTINGS_BYTES = 4 << 20
"""Of JSON files for which nothing else is said."""

MAX_JSON_BYTES = 64 << 20
"""Tokenizers have up to 40 MB."""

MAX_DATA_BYTES = 512 << 20
"""For files of questions, images and answers: DriveLM's has 200 MB."""

MAX_IMAGE_BYTES = 128 << 20
"""Of an image file: a PNG of 16 megapixels, 16 bits and alpha, even if it cannot be compressed."""

BYTES_PER_CONTAINER, BYTES_PER_VALUE = 32, 8
"""At least, in files of many; real files of data have several times as many."""

MIN_CONTAINERS, MIN_VALUES = 1 << 20, 1 << 23
"""That a file of any size may have."""

HALF_PAIR = re.compile(rb'\\u[dD][89a-fA-F]')
"""What may be half of a surrogate pair, which is JSON, but no text."""


def read_file(
    path: Path, max_bytes: int, *, may_be_sparse: bool = True, below: Path | None = None
) -> bytes:
    """Read a file of a limited size.

    Args:
        path: The file.
        max_bytes: Its largest size.
        may_be_sparse: Whether it may take far less of the disk than its size.
        below: The folder that it must lie in; None: any.

    Raises:
        OSError: The file cannot be read, is a pipe, is larger, is sparse and may not be, or lies
            elsewhere.
    """
    # Without O_NONBLOCK, opening a pipe would wait for ever.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), 'rb') as file:
        status = os.fstat(file.fileno())
        if stat.S_ISFIFO(status.st_mode):
            raise OSError(errno.EINVAL, 'got a pipe, allowed: a file', str(path))
        # Its path may be a link that was put there after it was checked.
        if below is not None and not _place_of(file.fileno()).is_relative_to(below.resolve()):
            raise OSError(errno.EXDEV, f'it leads out of {below}', str(path))
        # Reading decides: a device or a file that grows has no size.
        num_bytes = status.st_size
        if not may_be_sparse and num_bytes <= max_bytes and is_sparse(file.fileno(), status):
            raise OSError(errno.EINVAL, f'got {num_bytes} bytes, most of them a hole', str(path))
        content = b'' if num_bytes > max_bytes else file.read(max_bytes + 1)
    if max(num_bytes, len(content)) > max_bytes:
        got = num_bytes or f'more than {max_bytes}'
        raise OSError(errno.EFBIG, f'got {got} bytes, allowed: at most {max_bytes}', str(path))
    return content


def _place_of(descriptor: int) -> Path:
    return Path(os.readlink(f'/proc/self/fd/{descriptor}'))


def read_json(
    path: Path,
    *,
    parameter: str = '',
    next_step: str = 'copy it again',
    max_bytes: int = MAX_SETTINGS_BYTES,
    max_values: int | None = None,
    error: type[P2dError] = ConfigError,
) -> Any:
    """Read a JSON file.

    Args:
        path: The file, in UTF-8, with or without a byte order mark.
        parameter: The parameter that names the file or its folder; messages begin with it.
        next_step: What the user can do if it cannot be read; empty: the caller says it.
        max_bytes: Largest size of the file.
        max_values: Largest number of its values; None: as in `check_values`.
        error: The class of the error.

    Raises:
        P2dError: Of class `error`: the file is missing, unreadable or too large, or is not JSON.
    """
    name, advice = _words(path, parameter, next_step)
    try:
        data = read_file(path, max_bytes)
        check_values(data, max_values)
        may_be_no_text = HALF_PAIR.search(data) is not None
        text = data.decode('utf-8-sig')
        del data  # the text may take four times as much, and what it holds as much again
        content = json.loads(text)
        del text
        if may_be_no_text:
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except FileNotFoundError as err:
        raise error(f'{name} is missing{advice}') from err
    except OSError as err:
        raise error(f'{name} cannot be read: {err.strerror or err}{advice}') from err
    except (ValueError, RecursionError) as err:
        raise error(f'{name} is not valid JSON: {err}{advice}') from err


def check_values(data: bytes, max_values: int | None = None) -> None:
    """Raise `ValueError` for JSON of more values than allowed; None: than files of its size have.

    An empty list takes 2 bytes in a file and 60 in memory, an object of one number 7 and 240.
    """
    num_containers = data.count(b'[') + data.count(b'{')
    for what, num, least, num_bytes in (
        ('lists and objects', num_containers, MIN_CONTAINERS, BYTES_PER_CONTAINER),
        ('values', data.count(b','), MIN_VALUES, BYTES_PER_VALUE),
    ):
        allowed = max_values or max(least, len(data) // num_bytes)
        if num > allowed:
            raise ValueError(f'got {num} {what}, allowed: up to {allowed}')


def read_data(path: Path, *, parameter: str, next_step: str) -> Any:
    """Read a JSON file of questions, images or answers; see `read_json`."""
    return read_json(path, parameter=parameter, next_step=next_step, max_bytes=MAX_DATA_BYTES)


def read_json_object(
    path: Path,
    *,
    parameter: str = '',
    next_step: str = 'copy it again',
    max_bytes: int = MAX_SETTINGS_BYTES,
    max_values: int | None = None,
    error: type[P2dError] = ConfigError,
) -> dict[str, Any]:
    """Read a JSON object from a file; see `read_json`.

    Raises:
        P2dError: Of class `error`: it cannot be read, or its content is not a JSON object.
    """
    content = read_json(
        path,
        parameter=parameter,
        next_step=next_step,
        max_bytes=max_bytes,
        max_values=max_values,
        error=error,
    )
    if not isinstance(content, dict):
        name, advice = _words(path, parameter, next_step)
        raise error(f'{name} is not a JSON object: got a {type(content).__name__}{advice}')
    return content


def _words(path: Path, parameter: str, next_step: str) -> tuple[str, str]:
    """Return the beginning and the end of a message about a file."""
    return f'{parameter}: {path}' if parameter else str(
        path
    ), f'; {next_step}' if next_step else ''


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step: a reader sees the old content or the new."""
    write_bytes(path, (json.dumps(content, indent=2) + '\n').encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file in one step: a reader sees the old content or the new."""
    unfinished = path.with_name(f'.{path.name}-{secrets.token_hex(4)}')
    try:
        with unfinished.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def write_faults(what: str, next_step: str) -> Iterator[None]:
    """Turn an OSError into a ConfigError that names the file that cannot be written.

    Args:
        what: The parameter that names the file or folder, and the path.
        next_step: What the user can do.

    Raises:
        ConfigError: In place of OSError.
    """
    try:
        yield
    except OSError as err:
        reason = err.strerror or err
        raise ConfigError(f'{what} cannot be written: {reason}; {next_step}') from err


def is_link(path: Path) -> bool:
    """Return whether a path is a symbolic link, or a file with another name (a hard link)."""
    try:
        status = path.lstat()
    except OSError:  # it is yet to be made
        return False
    is_file = stat.S_ISREG(status.st_mode)
    return stat.S_ISLNK(status.st_mode) or (is_file and status.st_nlink > 1)


def refuse_link(
    path: Path,
    parameter: str,
    next_step: str = 'name what it leads to, or another place',
    error: type[P2dError] = ConfigError,
) -> None:
    """Refuse a link where something is to be written: it may have come with a data set.

    Args:
        path: The file or folder.
        parameter: The parameter that names it or a folder above it; the message begins with it.
        next_step: What the user can do.
        error: The class of the error.

    Raises:
        P2dError: Of class `error`: it is a symbolic or hard link.
    """
    if is_link(path):
        raise error(
            f'{parameter}: got {quote(str(path))}, a symbolic or hard link, allowed: a file or '
            f'folder of its own; {next_step}'
        )


def require_writable(path: Path) -> None:
    """Create the parent folder of a file and check that the file can be written.

    Raises:
        OSError: The file cannot be written.
    """
    for number, is_blocked in (
        (errno.ENOTDIR, path.parent.is_file()),
        (errno.EISDIR, path.is_dir()),
    ):
        if is_blocked:
            raise OSError(number, os.strerror(number), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix='.'):
        pass


@contextmanager
def no_leftovers(folder: Path) -> Iterator[None]:
    """If the body raises, remove what it created of the path of a folder and left empty."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in created:
            with suppress(OSError):  # it is not empty, or was never created
                path.rmdir()
        raise


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Flush every file in a folder to the disk; all may read them, only the owner may write."""
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open('rb') as file:
            os.fsync(file.fileno())
    sync_folder(folder)
