"""InternLM2's tokenizer files come in; a tokenizer that needs none of its authors' code goes out.

They are a SentencePiece model (BPE, with bytes for what it does not know) and a list of tokens
that were added to it; the model's file format is that of protocol buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
import struct
from typing import Any

from p2d_node.checkpoints.checkpoint_files import checked_tokenizer
from p2d_node.checkpoints.importing.streaming import read_json
from p2d_node.errors import ConfigError
from tokenizers import AddedToken, decoders, normalizers, Regex, Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

SPACE = '▁'
"""What SentencePiece writes for a space."""

BPE_MODEL = 2
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""SentencePiece's numbers of kinds of models and of pieces; sentencepiece_model.proto."""


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class _SentencePieceModel:
    """What tokenizer.model holds.

    Attributes:
        pieces: The vocabulary; places are ids.
        begins_with_space: Whether a space is put before a text.
        squeezes_spaces: Whether spaces at the ends go, and those between become one.
        charsmap: Replacements of characters, in SentencePiece's own format.
    """

    pieces: list[_Piece]
    begins_with_space: bool
    squeezes_spaces: bool
    charsmap: bytes


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of an InternLM2 checkpoint.

    Raises:
        ConfigError: Files that are missing, broken, or of another kind of tokenizer.
    """
    with checked_tokenizer(folder):
        if (folder / 'tokenizer.json').is_file():
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        path = folder / 'tokenizer.model'
        if not path.is_file():
            raise ConfigError(
                f'{folder} has no tokenizer.model and no tokenizer.json; copy the tokenizer files'
            )
        return _make_tokenizer(_parse_model(path.read_bytes()), _read_added_tokens(folder))


def _read_added_tokens(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the added tokens by id, as tokenizer_config.json has them."""
    path = folder / 'tokenizer_config.json'
    entries = read_json(path).get('added_tokens_decoder', {})
    if not isinstance(entries, dict):
        raise ConfigError(
            f'{path}: added_tokens_decoder: got a {type(entries).__name__}, allowed: an object; '
            'copy it again'
        )
    added = dict(_check_added_token(path, *item) for item in entries.items())
    path = folder / 'added_tokens.json'
    if path.is_file():
        for content, token_id in read_json(path).items():
            entry = {'content': content, 'special': True}
            added.setdefault(*_check_added_token(path, token_id, entry))
    return dict(sorted(added.items()))


def _check_added_token(path: Path, token_id: Any, entry: Any) -> tuple[int, dict[str, Any]]:
    """Return the id as a number, and the entry."""
    content = entry.get('content') if isinstance(entry, dict) else None
    if not str(token_id).isdecimal() or not isinstance(content, str):
        raise ConfigError(
            f'{path}: got an added token {token_id!r}: {entry!r}, allowed: a number and an object '
            'with its content; copy it again'
        )
    return int(token_id), entry


def _make_tokenizer(
    model: _SentencePieceModel, added: Mapping[int, Mapping[str, Any]]
) -> PreTrainedTokenizerFast:
    texts = [piece.text for piece in model.pieces]
    for token_id, entry in added.items():
        if token_id > len(texts):
            raise ConfigError(
                f'tokenizer_config.json: added_tokens_decoder has no token {len(texts)}, but '
                f'{token_id}; copy the tokenizer files again'
            )
        # An added token takes the place of a piece that the model does not use.
        texts[token_id : token_id + 1] = [entry['content']]
    vocabulary = {text: token_id for token_id, text in enumerate(texts)}
    unknown = next(piece.text for piece in model.pieces if piece.kind == UNKNOWN)
    tokenizer = Tokenizer(
        BPE(
            vocabulary,
            _make_merges(model.pieces, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    _normalise(tokenizer, model)
    _add_tokens(tokenizer, model.pieces, added)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token='<s>',
        eos_token='</s>',
        unk_token=unknown,
        pad_token='</s>',
        clean_up_tokenization_spaces=False,
    )


def _make_merges(pieces: Sequence[_Piece], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return all pairs of pieces that are a piece, the best piece first."""
    merges: list[tuple[str, str]] = []
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        text = piece.text
        if vocabulary.get(text) is None:
            continue
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return merges


def _normalise(tokenizer: Tokenizer, model: _SentencePieceModel) -> None:
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.squeezes_spaces:
        steps += [
            normalizers.Replace(Regex(r'\A +| +\z'), ''),
            normalizers.Replace(Regex(' +'), ' '),
        ]
    if model.begins_with_space:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(' ', SPACE)])
    back: list[Any] = [decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()]
    if model.begins_with_space:
        back.append(decoders.Strip(' ', 1, 0))
    tokenizer.decoder = decoders.Sequence(back)


def _add_tokens(
    tokenizer: Tokenizer, pieces: Sequence[_Piece], added: Mapping[int, Mapping[str, Any]]
) -> None:
    for token_id, piece in enumerate(pieces):
        if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED) and token_id not in added:
            is_special = piece.kind != USER_DEFINED
            token = AddedToken(piece.text, normalized=False, special=is_special)
            (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)([token])
    for entry in added.values():
        is_special = bool(entry.get('special', False))
        token = AddedToken(
            entry['content'],
            lstrip=bool(entry.get('lstrip', False)),
            rstrip=bool(entry.get('rstrip', False)),
            normalized=False,
            special=is_special,
        )
        (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)([token])


def _parse_model(data: bytes) -> _SentencePieceModel:
    pieces: list[_Piece] = []
    model_kind, begins_with_space, squeezes_spaces, charsmap = 1, 1, 1, b''
    for number, value in _fields(data):
        if number == 1:
            fields = dict(_fields(value))
            (score,) = struct.unpack('<f', fields.get(2, bytes(4)))
            pieces.append(_Piece(fields[1].decode(), score, fields.get(3, 1)))
        elif number == 2:
            model_kind = dict(_fields(value)).get(3, model_kind)
        elif number == 3:
            fields = dict(_fields(value))
            begins_with_space = fields.get(3, begins_with_space)
            squeezes_spaces = fields.get(4, squeezes_spaces)
            charsmap = fields.get(2, charsmap)
    if model_kind != BPE_MODEL:
        raise ValueError(f'tokenizer.model is of kind {model_kind}, allowed: {BPE_MODEL}, BPE')
    if not any(piece.kind == UNKNOWN for piece in pieces):
        raise ValueError('tokenizer.model has no unknown token')
    return _SentencePieceModel(pieces, bool(begins_with_space), bool(squeezes_spaces), charsmap)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of a protocol buffer's fields: an int for a varint, else bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f'tokenizer.model: a field of wire type {wire}')
        size = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            size, position = _varint(data, position)
        if position + size > len(data):
            raise ValueError('tokenizer.model is cut short')
        yield key >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the varint at `position`, and where the next value begins."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
