"""Refuses checkpoints whose settings ask for Python code, from the folder or from the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import re
from typing import Any

from p2d_node.checkpoints.settings_limits import TOKENIZER_FILE
from p2d_node.durable_files import read_json
from p2d_node.errors import ConfigError, quote

CODE_KEYS = ('auto_map', 'custom_pipelines')
"""Keys that name classes in Python files of the folder or of a repository."""

IMPLEMENTATION_KEY = re.compile(r'.*implementation(_internal)?')
"""Its value may be `owner/repository`, a kernel that is downloaded and run."""

HUB_CLASS = re.compile(r'[\w.-]+/[\w.-]+--[\w.]+')
"""`owner/repository--module.Class`, which is downloaded and run."""


def refuse_custom_code(folder: Path) -> None:
    """Check the JSON settings of a checkpoint before a library reads them.

    Raises:
        ConfigError: A setting that asks for code; the message names it.
    """
    for path in sorted(folder.glob('*.json')):
        if path.name == TOKENIZER_FILE:  # a vocabulary, read by a library that runs no code
            continue
        for key, value in _settings(read_json(path, parameter='model')):
            if _asks_for_code(key, value):
                raise ConfigError(
                    f'model: {path}: {key}: got {quote(value)}, which asks for Python code that '
                    'comes with the checkpoint or from the network, and is never run; remove it '
                    'if the model is one of transformers itself'
                )


def _asks_for_code(key: str, value: Any) -> bool:
    if key in CODE_KEYS:
        return bool(value)
    if not isinstance(value, str):
        return False
    return bool((IMPLEMENTATION_KEY.fullmatch(key) and '/' in value) or HUB_CLASS.fullmatch(value))


def _settings(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at any depth."""
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield from ((str(key), value) for key, value in item.items())
            waiting += item.values()
        elif isinstance(item, list):
            yield from (('', value) for value in item if isinstance(value, str))
            waiting += item
