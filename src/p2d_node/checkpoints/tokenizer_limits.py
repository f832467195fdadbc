"""Refuses tokenizers that make long texts of short ones, or that read other files."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
import math
from typing import Any

from p2d_node.errors import ConfigError, quote

MAX_TOKEN_CHARACTERS = 4096
MAX_ADDED_TOKENS = 20_000
MAX_GROWTH = 64
"""Largest number of characters that a tokenizer may make of one; NFKC makes 18 at most."""

MAX_STEPS = 64
"""Of a normalizer, a pre-tokenizer or a decoder; published ones have up to five."""

UNICODE_GROWTH = {'NFC': 3, 'NFD': 4, 'NFKC': 18, 'NFKD': 18}

FILE_KEYS = ('fast_tokenizer_files', 'vocab', 'merges', 'gguf_file', 'init_inputs')
"""Keys of tokenizer_config.json that name other files or bring another vocabulary."""


def check_tokenizer_config(what: str, content: Any) -> None:
    """Check tokenizer_config.json.

    Args:
        what: The parameter and the file, for messages.
        content: The content of the file.

    Raises:
        ConfigError: It names other files.
    """
    for key in FILE_KEYS:
        if content.get(key):
            raise ConfigError(
                f'{what}: {key}: got {quote(content[key])}, allowed: none; the tokenizer is in '
                'tokenizer.json'
            )


def check_tokenizer(what: str, content: Mapping[str, Any]) -> None:
    """Check tokenizer.json: how long texts can become, and the vocabulary.

    Args:
        what: The parameter and the file, for messages.
        content: The content of the file.

    Raises:
        ConfigError: It makes a long text of a short one, or has a vocabulary that no model has.
    """
    for part in ('normalizer', 'pre_tokenizer', 'decoder'):
        steps = list(islice(_steps(content.get(part)), MAX_STEPS + 1))
        if len(steps) > MAX_STEPS:
            raise ConfigError(
                f'{what}: {part}: got more than {MAX_STEPS} steps, allowed: up to {MAX_STEPS}; '
                'copy the tokenizer again'
            )
        growth = _growth(steps)
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


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a normalizer, pre-tokenizer or decoder; a sequence is one, too."""
    waiting = [part]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            waiting += (value for value in item.values() if isinstance(value, (dict, list)))
            if 'type' in item:
                yield item


def _growth(steps: Sequence[Mapping[str, Any]]) -> int:
    """Return how many characters steps can make of one, or add to a text, at most."""
    added = sum(len(str(step.get('prepend', ''))) for step in steps)
    return max(added, math.prod(map(_growth_of_step, steps)))


def _growth_of_step(step: Mapping[str, Any]) -> int:
    kind = step.get('type')
    if kind in UNICODE_GROWTH:
        return UNICODE_GROWTH[kind]
    if kind == 'Precompiled':
        return _longest_replacement(str(step.get('precompiled_charsmap', '')))
    if kind == 'Replace':
        return _growth_of_replace(step.get('pattern'), len(str(step.get('content', ''))))
    return 1


def _growth_of_replace(pattern: Any, num_characters: int) -> int:
    text = pattern.get('String') if isinstance(pattern, dict) else None
    if isinstance(text, str) and text:
        return max(1, math.ceil(num_characters / len(text)))
    # A pattern may match a single character, or nothing before every character.
    return num_characters + 1


def _longest_replacement(charsmap: str) -> int:
    """Return the length of the longest text in a table of sentencepiece.

    The table has the size of a trie in bytes, the trie, and the texts, each with a zero after it.
    """
    try:
        table = base64.b64decode(charsmap, validate=True)
    except (binascii.Error, ValueError):
        return 1  # the library says that it cannot be read
    texts = table[4 + int.from_bytes(table[:4], 'little') :]
    return max(1, *(len(text) for text in texts.split(b'\0')))


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
