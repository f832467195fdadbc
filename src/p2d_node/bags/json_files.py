"""A JSON file of a data set comes in; its content goes out, or `ConfigError` with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import json
from pathlib import Path
from typing import Any

from p2d_node.errors import ConfigError


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ConfigError: The file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except OSError as err:
        raise ConfigError(f'{path}: cannot be read: {err.strerror}') from err
    except (ValueError, RecursionError) as err:
        raise ConfigError(f'{path}: not valid JSON: {err}') from err


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
