"""Refuses checkpoints whose settings ask for Python code, from the folder or from the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import re
from typing import Any

from p2d_node.checkpoints.settings_limits import read_settings
from p2d_node.errors import ConfigError, quote

CODE_KEYS = ('auto_map', 'custom_pipelines')
"""Keys that name classes in Python files of the folder or of a repository."""

IMPLEMENTATION_KEY = re.compile(r'.*implementation(_internal)?')
"""Chooses kernels. Its value may be `owner/repository`, a kernel that is downloaded and run."""

IMPLEMENTATION = re.compile(r'\w*')
"""One of transformers itself. With a prefix, as in `paged|sdpa`, it may be a kernel, too."""

HUB_CLASS = re.compile(r'[\w.-]+/[\w.-]+--[\w.]+')
"""`owner/repository--module.Class`, which is downloaded and run."""


def refuse_custom_code(folder: Path) -> None:
    """Check the settings of a checkpoint before a library reads them.

    Raises:
        ConfigError: A setting that asks for code; the message names it.
    """
    for name, content in read_settings(folder, parameter='model'):
        for key, value in _settings(content):
            if _asks_for_code(key, value):
                raise ConfigError(
                    f'model: {folder / name}: {key}: got {quote(value)}, which asks for Python '
                    'code that comes with the checkpoint or from the network, and is never run; '
                    'remove it if the model is one of transformers itself'
                )


def _asks_for_code(key: str, value: Any) -> bool:
    if key in CODE_KEYS:
        return bool(value)
    if not isinstance(value, str):
        return False
    if IMPLEMENTATION_KEY.fullmatch(key):
        return IMPLEMENTATION.fullmatch(value) is None
    return HUB_CLASS.fullmatch(value) is not None


def _settings(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at any depth.

    What lies below the key of an implementation is yielded with that key: it may name one for
    each part of the model.
    """
    waiting: list[tuple[str, Any]] = [('', content)]
    while waiting:
        above, item = waiting.pop()
        if isinstance(item, dict):
            pairs = [(str(key), value) for key, value in item.items()]
        elif isinstance(item, list):
            pairs = [('', value) for value in item]
        else:
            continue
        if IMPLEMENTATION_KEY.fullmatch(above):
            pairs = [(above, value) for _, value in pairs]
        yield from pairs
        waiting += pairs
