"""Refuses tokenizers that take long, that make long texts of short ones, or read other files."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence
import math
import re
from typing import Any

from p2d_node.errors import ConfigError, quote

MAX_TOKEN_CHARACTERS = 256
"""Of a token. Published ones have up to 128, of spaces. The library looks from each character of a
text as far as the longest token, and an answer has as many characters per token."""

MAX_ADDED_TOKENS, MAX_SPECIAL_TOKENS = 20_000, 1024
"""Of all files together, where a token counts as often as it is there. transformers compares each
special token with all the others. Published tokenizers have up to 6,400 and 30."""

MAX_ADDED_CHARACTERS = 1 << 20
"""Of all special and added tokens together, after the normalizer, which does not change those that
say `normalized: false`. The library takes up to 2 microseconds and 120 bytes per character, and
nothing limits its time. Published tokenizers have up to 300,000."""

MAX_CHARACTERS, MAX_UNIGRAM_CHARACTERS = 1 << 22, 1 << 21
"""Of all tokens together. 150,000 to 250,000 published ones have one to two million. The library
takes up to 80 bytes per character, and 350 for a vocabulary of the kind Unigram."""

MAX_VOCABULARY, MAX_MERGES = 300_000, 400_000
"""Published models of the known families have up to 160,000 and 280,000. An entry takes up to 600
bytes while it is read, and one of the vocabulary a score for each token of an answer."""

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

MAX_WORD_CHARACTERS = 100
"""Of a word that WordPiece parts; its time grows with the square. Published ones have as many."""

MAX_AFFIX_CHARACTERS = 16
"""Of what a model puts before or after the parts of a word: `##`, or `</w>`."""

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

TOKEN_KEY = re.compile(r'.*_tokens?')
"""Keys of tokenizer_config.json whose values are special tokens."""

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
    for names, allowed_growth in (
        (('normalizer', 'pre_tokenizer'), MAX_GROWTH),
        (('decoder',), MAX_DECODER_GROWTH),
    ):
        parts = {name: _steps(what, name, content.get(name)) for name in names}
        growth = math.prod(map(_growth, parts.values()))
        if growth > allowed_growth:
            raise ConfigError(
                f'{what}: {" and ".join(names)}: makes {growth} characters of one, allowed: up to '
                f'{allowed_growth}; copy the tokenizer again'
            )
        replaced = math.prod(
            _growth_of_step(step)
            for steps in parts.values()
            for step in steps
            if step['type'] == 'Replace'
        )
        if replaced > MAX_REPLACE_GROWTH:
            raise ConfigError(
                f'{what}: {" and ".join(names)}: replaces one character by {replaced}, allowed: '
                f'up to {MAX_REPLACE_GROWTH}; copy the tokenizer again'
            )
        for name, steps in parts.items():
            for step in steps:
                _check_pattern(f'{what}: {name}', step.get('pattern', {}).get('Regex'), name)
    _check_model(f'{what}: model', content.get('model'))
    lengths = list(map(len, _words(content)))
    check_token_lengths(what, lengths)
    is_unigram = isinstance(_vocabulary(content), list)
    allowed = MAX_UNIGRAM_CHARACTERS if is_unigram else MAX_CHARACTERS
    if sum(lengths) > allowed:
        raise _too_many(what, f'tokens of {sum(lengths)} characters together', allowed)


def check_token_numbers(what: str, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Check how many tokens the files of a checkpoint add to its vocabulary, and their size.

    Args:
        what: The parameter and the folder, for messages.
        files: Name to content.

    Raises:
        ConfigError: They are too many, or too long together.
    """
    config, tokenizer = (
        files.get(name, {}) for name in ('tokenizer_config.json', 'tokenizer.json')
    )
    special = [
        [value for key, value in config.items() if TOKEN_KEY.fullmatch(key)],
        files.get('special_tokens_map.json', {}),
    ]
    num_special = _num_values(special)
    if num_special > MAX_SPECIAL_TOKENS:
        raise _too_many(what, f'{num_special} special tokens', MAX_SPECIAL_TOKENS)
    added = [
        tokenizer.get('added_tokens'),
        config.get('added_tokens_decoder'),
        list(files.get('added_tokens.json', {})),
    ]
    num_added = sum(len(part) for part in added if isinstance(part, (list, dict)))
    growth = _growth(_steps(what, 'normalizer', tokenizer.get('normalizer')))
    check_added_tokens(what, num_added, _num_characters([special, added], growth))


def check_added_tokens(what: str, num_tokens: int, num_characters: int) -> None:
    """Check the number of added tokens, and of their characters as the library searches for them.

    Raises:
        ConfigError: They are too many, or too long together.
    """
    if num_tokens > MAX_ADDED_TOKENS:
        raise _too_many(what, f'{num_tokens} added tokens', MAX_ADDED_TOKENS)
    if num_characters > MAX_ADDED_CHARACTERS:
        got = f'special and added tokens of {num_characters} normalized characters together'
        raise _too_many(what, got, MAX_ADDED_CHARACTERS)


def _too_many(what: str, got: str, allowed: int) -> ConfigError:
    return ConfigError(f'{what}: got {got}, allowed: up to {allowed}; copy the tokenizer again')


def _num_characters(content: Any, growth: int) -> int:
    """Return the number of characters of the tokens in JSON data, after they were normalized.

    Args:
        content: Texts, objects with a text `content`, and lists and objects of them.
        growth: How many characters the normalizer makes of one, at most.
    """
    waiting, count = [content], 0
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            count += growth * len(item)
        elif isinstance(item, dict):
            parts = dict(item)
            if parts.get('normalized') is False and isinstance(parts.get('content'), str):
                count += len(parts.pop('content'))
            waiting += parts.values()
        elif isinstance(item, list):
            waiting += item
    return count


def _num_values(content: Any) -> int:
    """Return the number of objects, and of values other than lists, in JSON data."""
    waiting, count = [content], 0
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
            continue
        count += 1
        if isinstance(item, dict):
            waiting += (value for value in item.values() if isinstance(value, (dict, list)))
    return count


def check_token_lengths(what: str, lengths: Iterable[int]) -> None:
    """Check the lengths of tokens, in characters.

    Raises:
        ConfigError: A token is too long.
    """
    longest = max(lengths, default=0)
    if longest > MAX_TOKEN_CHARACTERS:
        raise _too_many(what, f'a token of {longest} characters', MAX_TOKEN_CHARACTERS)


def _check_model(what: str, model: Any) -> None:
    settings = {} if model is None else model
    if not isinstance(settings, dict):
        raise _misshapen(what, settings, 'an object')
    longest = settings.get('max_input_chars_per_word')
    if isinstance(longest, int) and longest > MAX_WORD_CHARACTERS:
        key = 'max_input_chars_per_word'
        raise _too_many(f'{what}: {key}', str(longest), MAX_WORD_CHARACTERS)
    if settings.get('dropout'):  # each merge is tried again 1 / (1 - dropout) times
        raise ConfigError(
            f'{what}: dropout: got {quote(settings["dropout"])}, allowed: null or 0; copy the '
            'tokenizer again'
        )
    for key in ('continuing_subword_prefix', 'end_of_word_suffix'):
        length = len(str(settings.get(key) or ''))
        if length > MAX_AFFIX_CHARACTERS:
            raise _too_many(f'{what}: {key}', f'{length} characters', MAX_AFFIX_CHARACTERS)
    for key, name, allowed in (
        ('vocab', 'tokens', MAX_VOCABULARY),
        ('merges', 'merges', MAX_MERGES),
    ):
        entries = settings.get(key)
        if isinstance(entries, (list, dict)) and len(entries) > allowed:
            raise _too_many(what, f'{len(entries)} {name}', allowed)


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


def _steps(what: str, name: str, part: Any) -> list[Mapping[str, Any]]:
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
            raise _too_many(place, f'more than {MAX_STEPS} steps', MAX_STEPS)
        kind = step.get('type') if isinstance(step, dict) else None
        inner = step.get(INNER_STEPS[name]) if kind == 'Sequence' else None
        if isinstance(inner, list):
            waiting += inner
        elif isinstance(kind, str) and kind in STEPS[name]:
            _check_step(place, step)
            steps.append(step)
        else:
            allowed = f'objects of the type Sequence, {", ".join(sorted(STEPS[name]))}'
            raise _misshapen(place, step, allowed)
    return steps


def _misshapen(what: str, got: Any, allowed: str) -> ConfigError:
    return ConfigError(f'{what}: got {quote(got)}, allowed: {allowed}; copy the tokenizer again')


def _check_step(what: str, step: Mapping[str, Any]) -> None:
    """Check the values of a step that decide how long a text becomes.

    Raises:
        ConfigError: The library could take them for something else.
    """
    if 'pattern' in step:
        pattern = step['pattern']
        texts = list(pattern.items()) if isinstance(pattern, dict) else []
        if len(texts) != 1 or texts[0][0] not in PATTERN_KINDS or not isinstance(texts[0][1], str):
            raise _misshapen(f'{what}: pattern', pattern, 'String or Regex, with a text')
    for key in ('content', 'prepend', 'precompiled_charsmap'):
        if not isinstance(step.get(key, ''), str):
            raise _misshapen(f'{what}: {key}', step[key], 'a text')
    try:
        base64.b64decode(step.get('precompiled_charsmap', ''), validate=True)
    except (binascii.Error, ValueError) as err:
        raise _misshapen(f'{what}: precompiled_charsmap', str(err), 'base64 with its =') from err


def _growth(steps: Sequence[Mapping[str, Any]]) -> int:
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
