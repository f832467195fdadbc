"""Refuses steps of tokenizers that take long, or that make long texts of short ones."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
import math
import re
from typing import Any

from p2d_node.errors import ConfigError, quote

UPPER, LOWER = r'\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}', r'\p{Ll}\p{Lm}\p{Lo}\p{M}'

OUTER_SPACES = r'\A +|(?<! ) +\z'
"""At the begin and the end of a text; each run of spaces is looked at once."""

PATTERNS = (
    r'\w+',  # this project's
    r'[^\w\s]',
    OUTER_SPACES,  # sentencepiece's
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
PATTERN_KINDS = ('String', 'Regex')
MAX_GROWTH = 72
"""Largest number of characters that a tokenizer may make of one: NFKC and ByteLevel make as many,
if each does its worst."""

MAX_REPLACE_GROWTH = 4
"""As `MAX_GROWTH`, of the replacements that a tokenizer names: of any letter, which the text that
is tried at start may not have. Published ones make one or two."""

MAX_DECODER_GROWTH = 4
"""As `MAX_GROWTH`, of the texts of tokens: an answer is decoded again for each of its tokens."""

MAX_STEPS = 8
"""Of a normalizer, a pre-tokenizer or a decoder, with its sequences; published ones have up to
six. A decoder goes through them for each token of an answer."""

NORMALIZERS = """
BertNormalizer ByteLevel Lowercase NFC NFD NFKC NFKD Nmt Precompiled Prepend Replace Strip
StripAccents
"""
PRE_TOKENIZERS = """
BertPreTokenizer ByteLevel CharDelimiterSplit Digits FixedLength Metaspace Punctuation Split
UnicodeScripts Whitespace WhitespaceSplit
"""
DECODERS = 'BPEDecoder ByteFallback ByteLevel CTC Fuse Metaspace Replace Strip WordPiece'
STEPS = {
    'normalizer': frozenset(NORMALIZERS.split()),
    'pre_tokenizer': frozenset(PRE_TOKENIZERS.split()),
    'decoder': frozenset(DECODERS.split()),
}
"""Types of the steps of each part, beside `Sequence`."""

INNER_STEPS = {
    'normalizer': 'normalizers',
    'pre_tokenizer': 'pretokenizers',
    'decoder': 'decoders',
}
"""Key of a sequence that holds its steps."""

UNICODE_GROWTH = {'NFC': 3, 'NFD': 4, 'NFKC': 18, 'NFKD': 18, 'Lowercase': 3}
BYTE_LEVEL_GROWTH = 4
"""It makes a character of each byte."""

EMPTY_GROWTH = 3
"""Decoders replace these texts by spaces; an empty one is before and after each character."""

BERT_GROWTH = 4 * 3
"""Accents are parted from their letters, and Chinese characters get spaces on both sides."""


def check_steps(what: str, content: Mapping[str, Any]) -> None:
    """Check normalizer, pre-tokenizer and decoder of tokenizer.json.

    Args:
        what: The parameter and the file, for messages.
        content: The content of the file.

    Raises:
        ConfigError: They have a step or a regular expression that is not known, or make a long
            text of a short one.
    """
    for names, max_growth in (
        (('normalizer', 'pre_tokenizer'), MAX_GROWTH),
        (('decoder',), MAX_DECODER_GROWTH),
    ):
        parts = {name: read_steps(what, name, content.get(name)) for name in names}
        _check_growth(f'{what}: {" and ".join(names)}', [*parts.values()], max_growth)
        for name, steps in parts.items():
            for step in steps:
                _check_pattern(f'{what}: {name}', step.get('pattern', {}).get('Regex'), name)


def _check_growth(
    what: str, parts: Sequence[Sequence[Mapping[str, Any]]], max_growth: int
) -> None:
    growth = math.prod(map(largest_growth, parts))
    if growth > max_growth:
        raise ConfigError(
            f'{what}: makes {growth} characters of one, allowed: up to {max_growth}; copy the '
            'tokenizer again'
        )
    replaces = (step for steps in parts for step in steps if step['type'] == 'Replace')
    replaced = math.prod(map(_growth_of_step, replaces))
    if replaced > MAX_REPLACE_GROWTH:
        raise ConfigError(
            f'{what}: replaces one character by {replaced}, allowed: up to {MAX_REPLACE_GROWTH}; '
            'copy the tokenizer again'
        )


def _check_pattern(what: str, pattern: Any, name: str) -> None:
    if pattern is None:
        return
    text = str(pattern)
    if name == 'decoder':  # published ones replace plain texts only, and it runs per token
        raise ConfigError(
            f'{what}: got the regular expression {quote(text)}, allowed: none; name a model with '
            'another tokenizer'
        )
    if len(text) > MAX_PATTERN_CHARACTERS or not KNOWN_PATTERN.fullmatch(text):
        raise ConfigError(
            f'{what}: got the regular expression {quote(text)}, allowed: words and the '
            'expressions of GPT-2, Llama 3, Qwen2 and Mistral, with a bar between each two, as an '
            'unknown one may take hours; name a model with another tokenizer'
        )


def read_steps(what: str, name: str, part: Any) -> list[Mapping[str, Any]]:
    """Return the steps of a part of tokenizer.json, those of sequences one by one.

    The library also reads steps without a type, and steps that are lists of values. Where a type
    is known, it reads what the type says, and nothing else.

    Args:
        what: The parameter and the file, for messages.
        name: `normalizer`, `pre_tokenizer` or `decoder`.
        part: Its content.

    Raises:
        ConfigError: It has too many steps, or one that is not of `STEPS`.
    """
    place, steps = f'{what}: {name}', []
    waiting = [] if part is None else [part]
    num_seen = 0
    while waiting:
        step = waiting.pop()
        num_seen += 1
        if num_seen > MAX_STEPS:
            raise too_many(place, f'more than {MAX_STEPS} steps', MAX_STEPS)
        kind = step.get('type') if isinstance(step, dict) else None
        inner = step.get(INNER_STEPS[name]) if kind == 'Sequence' else None
        if isinstance(inner, list):
            waiting += inner
        elif isinstance(kind, str) and kind in STEPS[name]:
            _check_step(place, step)
            steps.append(step)
        else:
            allowed = f'objects of the type Sequence, {", ".join(sorted(STEPS[name]))}'
            raise misshapen(place, step, allowed)
    return steps


def _check_step(what: str, step: Mapping[str, Any]) -> None:
    """Check the values of a step that decide how long a text becomes.

    Raises:
        ConfigError: The library could take them for something else.
    """
    if 'pattern' in step:
        pattern = step['pattern']
        texts = list(pattern.items()) if isinstance(pattern, dict) else []
        if len(texts) != 1 or texts[0][0] not in PATTERN_KINDS or not isinstance(texts[0][1], str):
            raise misshapen(f'{what}: pattern', pattern, 'String or Regex, with a text')
    for key in ('content', 'prepend', 'precompiled_charsmap'):
        if not isinstance(step.get(key, ''), str):
            raise misshapen(f'{what}: {key}', step[key], 'a text')
    try:
        base64.b64decode(step.get('precompiled_charsmap', ''), validate=True)
    except (binascii.Error, ValueError) as err:
        raise misshapen(f'{what}: precompiled_charsmap', str(err), 'base64 with its =') from err


def largest_growth(steps: Sequence[Mapping[str, Any]]) -> int:
    """Return how many characters steps can make of one, or add to a text, at most."""
    added = sum(len(step.get('prepend', '')) for step in steps)
    return max(added, math.prod(map(_growth_of_step, steps)))


def _growth_of_step(step: Mapping[str, Any]) -> int:
    kind = step['type']
    if kind in UNICODE_GROWTH:
        return UNICODE_GROWTH[kind]
    if kind == 'ByteLevel':
        return BYTE_LEVEL_GROWTH
    if kind == 'BertNormalizer':
        return BERT_GROWTH
    if kind == 'Precompiled':
        return _longest_replacement(step.get('precompiled_charsmap', ''))
    if kind == 'Replace':
        return _growth_of_replace(step.get('pattern', {}), len(step.get('content', '')))
    replaced = step.get('suffix'), step.get('word_delimiter_token')
    return EMPTY_GROWTH if '' in replaced else 1


def _growth_of_replace(pattern: Mapping[str, str], num_characters: int) -> int:
    if text := pattern.get('String'):
        return max(1, math.ceil(num_characters / len(text)))
    # A pattern may match a single character, or nothing before every character.
    return num_characters + 1


def _longest_replacement(charsmap: str) -> int:
    """Return the length of the longest text in a table of sentencepiece.

    The table has the size of a trie in bytes, the trie, and the texts, each with a zero after it.
    """
    table = base64.b64decode(charsmap)
    texts = table[4 + int.from_bytes(table[:4], 'little') :]
    return max(1, *(len(text) for text in texts.split(b'\0')))


def too_many(what: str, got: str, allowed: int) -> ConfigError:
    """Return the error of a tokenizer with more of something than is allowed."""
    return ConfigError(f'{what}: got {got}, allowed: up to {allowed}; copy the tokenizer again')


def misshapen(what: str, got: Any, allowed: str) -> ConfigError:
    """Return the error of a tokenizer with a value of another form."""
    return ConfigError(f'{what}: got {quote(got)}, allowed: {allowed}; copy the tokenizer again')
