"""Refuses tokenizers that take long, that make long texts of short ones, or read other files."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
import math
import re
from typing import Any

from p2d_node.errors import ConfigError, quote

MAX_TOKEN_CHARACTERS = 4096
MAX_ADDED_TOKENS = 20_000
MAX_CHARACTERS, MAX_UNIGRAM_CHARACTERS = 1 << 22, 1 << 21
"""Of all tokens together. 150,000 to 250,000 published ones have one to two million. The library
takes up to 80 bytes per character, and 350 for a vocabulary of the kind Unigram."""

UPPER, LOWER = r'\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}', r'\p{Ll}\p{Lm}\p{Lo}\p{M}'

PATTERNS = (
    r'\w+',  # this project's
    r'[^\w\s]',
    r'\A +| +\z',  # sentencepiece's
    ' +',
    ' {2,}',
    r'\s+',
    r'\s{2,}',
    r'[\n\r\t]',
    "'s|'t|'re|'ve|'m|'ll|'d",  # GPT-2's
    r' ?\p{L}+',
    r' ?\p{N}+',
    r' ?[^\s\p{L}\p{N}]+',
    r'\s+(?!\S)|\s+',
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # Llama 3's and Qwen2's
    r'[^\r\n\p{L}\p{N}]?\p{L}+',
    r'[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+',
    r'\p{N}',
    r'\p{N}{1,3}',
    r' ?[^\s\p{L}\p{N}]+[\r\n]*',
    r' ?[^\s\p{L}\p{N}]+[\r\n/]*',
    r' ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*',
    r'\s*[\r\n]+|\s+(?!\S)|\s+',
    rf'[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*',
)
"""Parts of the regular expressions in published tokenizers; the last is Mistral's. With others the
library may take hours for a question, also if those that are tried take no time."""

PART = '|'.join([r'[\w ]+', *map(re.escape, PATTERNS)])
KNOWN_PATTERN = re.compile(rf'({PART})(\|({PART}))*')
"""Parts of `PATTERNS` and words, with a bar between each two."""

MAX_PATTERN_CHARACTERS = 4096
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
        for step in steps:
            _check_pattern(f'{what}: {part}', step.get('Regex'))
    added = content.get('added_tokens') or []
    if len(added) > MAX_ADDED_TOKENS:
        raise ConfigError(
            f'{what}: got {len(added)} added tokens, allowed: up to {MAX_ADDED_TOKENS}; '
            'copy the tokenizer again'
        )
    lengths = list(map(len, _words(content)))
    if max(lengths, default=0) > MAX_TOKEN_CHARACTERS:
        raise ConfigError(
            f'{what}: got a token of {max(lengths)} characters, allowed: up to '
            f'{MAX_TOKEN_CHARACTERS}; copy the tokenizer again'
        )
    is_unigram = isinstance(_vocabulary(content), list)
    allowed = MAX_UNIGRAM_CHARACTERS if is_unigram else MAX_CHARACTERS
    if sum(lengths) > allowed:
        raise ConfigError(
            f'{what}: got tokens of {sum(lengths)} characters together, allowed: up to {allowed}; '
            'copy the tokenizer again'
        )


def _check_pattern(what: str, pattern: Any) -> None:
    if pattern is None:
        return
    text = str(pattern)
    if len(text) > MAX_PATTERN_CHARACTERS or not KNOWN_PATTERN.fullmatch(text):
        raise ConfigError(
            f'{what}: got the regular expression {quote(text)}, allowed: words and the '
            'expressions of GPT-2, Llama 3, Qwen2 and Mistral, with a bar between each two, as an '
            'unknown one may take hours; name a model with another tokenizer'
        )


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a normalizer, pre-tokenizer or decoder, and everything in them.

    What a step does depends on its keys: the library accepts some steps without a type.
    """
    waiting = [part]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            waiting += (value for value in item.values() if isinstance(value, (dict, list)))
            yield item


def _growth(steps: Sequence[Mapping[str, Any]]) -> int:
    """Return how many characters steps can make of one, or add to a text, at most."""
    added = sum(len(str(step.get('prepend', ''))) for step in steps)
    return max(added, math.prod(map(_growth_of_step, steps)))


def _growth_of_step(step: Mapping[str, Any]) -> int:
    kind = step.get('type')
    if kind in UNICODE_GROWTH:
        return UNICODE_GROWTH[kind]
    if 'precompiled_charsmap' in step:
        return _longest_replacement(str(step['precompiled_charsmap']))
    if 'pattern' in step and 'content' in step:
        return _growth_of_replace(step['pattern'], len(str(step['content'])))
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


def _vocabulary(content: Mapping[str, Any]) -> Any:
    model = content.get('model')
    return model.get('vocab') if isinstance(model, dict) else None


def _words(content: Mapping[str, Any]) -> Iterator[str]:
    vocabulary = _vocabulary(content)
    if isinstance(vocabulary, dict):
        yield from vocabulary
    elif isinstance(vocabulary, list):
        yield from (str(entry[0]) for entry in vocabulary if isinstance(entry, list) and entry)
    for token in content.get('added_tokens') or []:
        if isinstance(token, dict):
            yield str(token.get('content', ''))
