"""Refuses settings of a checkpoint that would make libraries hang or fill the memory.

The limits are far above what published models have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import math
from pathlib import Path
import re
from typing import Any

from p2d_node.durable_files import read_json_object
from p2d_node.errors import ConfigError, quote

CONFIG_FILE = 'config.json'
TOKENIZER_FILE = 'tokenizer.json'

MAX_TEMPLATE_BYTES = 1 << 20

MAX_LAYERS = 512
LAYER_KEY = re.compile(r'.*(layers|depth|blocks|experts)')
"""Keys of config.json whose value is a number of modules to build."""

MAX_NUMBER = 1 << 31
MAX_TOKEN_CHARACTERS = 4096
MAX_ADDED_TOKENS = 50_000
MAX_GROWTH = 64
"""Largest number of characters that a tokenizer may make of one; NFKC makes 18 at most."""

UNICODE_GROWTH = 18
GROWING_TYPES = ('NFKC', 'NFKD', 'NFD', 'NFC', 'Precompiled')


def check_limits(folder: Path, *, parameter: str = 'model') -> None:
    """Check the settings of a checkpoint before a library reads them.

    Raises:
        ConfigError: A number, a text or a file of a size that no model has.
    """
    _check_templates(folder, parameter)
    for name, check in ((CONFIG_FILE, _check_config), (TOKENIZER_FILE, _check_tokenizer)):
        path = folder / name
        if path.exists():
            what = f'{parameter}: {path}'
            check(what, read_json_object(path, parameter=parameter))


def _check_config(what: str, content: Mapping[str, Any]) -> None:
    if 'transformers_weights' in content:
        raise ConfigError(
            f'{what}: transformers_weights: got {quote(content["transformers_weights"])}, '
            'allowed: none; weights are in model.safetensors or in the files of its index'
        )
    for key, value in _numbers(content):
        limit = MAX_LAYERS if LAYER_KEY.fullmatch(key) else MAX_NUMBER
        if abs(value) > limit:
            raise ConfigError(
                f'{what}: {key}: got {quote(value)}, allowed: up to {limit}; copy the '
                'checkpoint again'
            )


def _numbers(content: Any) -> Iterator[tuple[str, int]]:
    waiting: list[tuple[str, Any]] = [('', content)]
    while waiting:
        key, item = waiting.pop()
        if isinstance(item, dict):
            waiting += item.items()
        elif isinstance(item, list):
            waiting += ((key, value) for value in item)
        elif type(item) is int:
            yield key, item


def _check_tokenizer(what: str, content: Mapping[str, Any]) -> None:
    """Check how long texts can become, and the vocabulary."""
    for part in ('normalizer', 'pre_tokenizer', 'decoder'):
        growth = _growth(content.get(part))
        if growth > MAX_GROWTH:
            raise ConfigError(
                f'{what}: {part}: makes {growth} characters of one, allowed: up to '
                f'{MAX_GROWTH}; copy the tokenizer again'
            )
    added = content.get('added_tokens') or []
    if len(added) > MAX_ADDED_TOKENS:
        raise ConfigError(
            f'{what}: got {len(added)} added tokens, allowed: up to {MAX_ADDED_TOKENS}; '
            'copy the tokenizer again'
        )
    longest = max(map(len, _words(content)), default=0)
    if longest > MAX_TOKEN_CHARACTERS:
        raise ConfigError(
            f'{what}: got a token of {longest} characters, allowed: up to '
            f'{MAX_TOKEN_CHARACTERS}; copy the tokenizer again'
        )


def _growth(part: Any) -> int:
    """Return how many characters a normalizer or decoder can make of one, at most."""
    growth = 1
    waiting = [part]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        if not isinstance(item, dict):
            continue
        waiting += (value for value in item.values() if isinstance(value, (dict, list)))
        growth *= _growth_of_step(item)
        if growth > MAX_GROWTH:
            break
    return growth


def _growth_of_step(step: Mapping[str, Any]) -> int:
    kind = step.get('type')
    if kind in GROWING_TYPES:
        return UNICODE_GROWTH if kind in ('NFKC', 'NFKD', 'Precompiled') else 3
    if kind == 'Replace':
        return _growth_of_replace(step.get('pattern'), len(str(step.get('content', ''))))
    if kind == 'Prepend' and len(str(step.get('prepend', ''))) > MAX_GROWTH:
        return len(str(step['prepend']))
    return 1


def _growth_of_replace(pattern: Any, num_characters: int) -> int:
    text = pattern.get('String') if isinstance(pattern, dict) else None
    if isinstance(text, str) and text:
        return max(1, math.ceil(num_characters / len(text)))
    # A pattern may match a single character, or nothing before every character.
    return num_characters + 1


def _words(content: Mapping[str, Any]) -> Iterator[str]:
    model = content.get('model')
    vocabulary = model.get('vocab') if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from vocabulary
    elif isinstance(vocabulary, list):
        yield from (str(entry[0]) for entry in vocabulary if isinstance(entry, list) and entry)
    for token in content.get('added_tokens') or []:
        if isinstance(token, dict):
            yield str(token.get('content', ''))


def _check_templates(folder: Path, parameter: str) -> None:
    for path in sorted(folder.glob('*.jinja')):
        num_bytes = path.stat().st_size
        if num_bytes > MAX_TEMPLATE_BYTES:
            raise ConfigError(
                f'{parameter}: {path} has {num_bytes} bytes, allowed: up to {MAX_TEMPLATE_BYTES}; '
                'copy it again'
            )
