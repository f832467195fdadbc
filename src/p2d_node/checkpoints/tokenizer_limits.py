"""Refuses tokenizers that take long, that make long texts of short ones, or read other files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
import re
from typing import Any

from p2d_node.checkpoints.tokenizer_steps import (
    check_steps,
    largest_growth,
    misshapen,
    read_steps,
    too_many,
)
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

MAX_WORD_CHARACTERS = 100
"""Of a word that WordPiece parts; its time grows with the square. Published ones have as many."""

MAX_AFFIX_CHARACTERS = 16
"""Of what a model puts before or after the parts of a word: `##`, or `</w>`."""

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
    check_steps(what, content)
    _check_model(f'{what}: model', content.get('model'))
    lengths = list(map(len, _words(content)))
    check_token_lengths(what, lengths)
    is_unigram = isinstance(_vocabulary(content), list)
    allowed = MAX_UNIGRAM_CHARACTERS if is_unigram else MAX_CHARACTERS
    if sum(lengths) > allowed:
        raise too_many(what, f'tokens of {sum(lengths)} characters together', allowed)


def without_vocabulary(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return tokenizer.json without what may have many entries: vocab, merges, added_tokens."""
    rest = {key: value for key, value in content.items() if key != 'added_tokens'}
    model = rest.get('model')
    if isinstance(model, dict):
        rest['model'] = {k: v for k, v in model.items() if k not in ('vocab', 'merges')}
    return rest


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
        raise too_many(what, f'{num_special} special tokens', MAX_SPECIAL_TOKENS)
    added = [
        tokenizer.get('added_tokens'),
        config.get('added_tokens_decoder'),
        list(files.get('added_tokens.json', {})),
    ]
    num_added = sum(len(part) for part in added if isinstance(part, (list, dict)))
    growth = largest_growth(read_steps(what, 'normalizer', tokenizer.get('normalizer')))
    check_added_tokens(what, num_added, _num_characters([special, added], growth))


def check_added_tokens(what: str, num_tokens: int, num_characters: int) -> None:
    """Check the number of added tokens, and of their characters as the library searches for them.

    Raises:
        ConfigError: They are too many, or too long together.
    """
    if num_tokens > MAX_ADDED_TOKENS:
        raise too_many(what, f'{num_tokens} added tokens', MAX_ADDED_TOKENS)
    if num_characters > MAX_ADDED_CHARACTERS:
        got = f'special and added tokens of {num_characters} normalized characters together'
        raise too_many(what, got, MAX_ADDED_CHARACTERS)


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
        raise too_many(what, f'a token of {longest} characters', MAX_TOKEN_CHARACTERS)


def _check_model(what: str, model: Any) -> None:
    settings = {} if model is None else model
    if not isinstance(settings, dict):
        raise misshapen(what, settings, 'an object')
    longest = settings.get('max_input_chars_per_word')
    if isinstance(longest, int) and longest > MAX_WORD_CHARACTERS:
        key = 'max_input_chars_per_word'
        raise too_many(f'{what}: {key}', str(longest), MAX_WORD_CHARACTERS)
    if settings.get('dropout'):  # each merge is tried again 1 / (1 - dropout) times
        raise ConfigError(
            f'{what}: dropout: got {quote(settings["dropout"])}, allowed: null or 0; copy the '
            'tokenizer again'
        )
    for key in ('continuing_subword_prefix', 'end_of_word_suffix'):
        length = len(str(settings.get(key) or ''))
        if length > MAX_AFFIX_CHARACTERS:
            raise too_many(f'{what}: {key}', f'{length} characters', MAX_AFFIX_CHARACTERS)
    for key, name, allowed in (
        ('vocab', 'tokens', MAX_VOCABULARY),
        ('merges', 'merges', MAX_MERGES),
    ):
        entries = settings.get(key)
        if isinstance(entries, (list, dict)) and len(entries) > allowed:
            raise too_many(what, f'{len(entries)} {name}', allowed)


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
