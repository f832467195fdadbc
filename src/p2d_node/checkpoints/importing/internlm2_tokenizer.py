"""Converts InternLM2's tokenizer files to a tokenizer of transformers, without its authors' code.

The files are a SentencePiece model (BPE with byte fallback) and a list of added tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p2d_node.checkpoints.fast_tokenizer import load_fast_tokenizer
from p2d_node.checkpoints.settings_limits import TOKENIZER_FILE
from p2d_node.checkpoints.tokenizer_limits import check_added_tokens
from p2d_node.checkpoints.tokenizer_steps import OUTER_SPACES
from p2d_node.durable_files import read_file, read_json_object
from p2d_node.errors import BackendUnavailableError, checkpoint_faults, ConfigError
from p2d_node.held_stderr import held_stderr
from tokenizers import AddedToken, decoders, normalizers, Regex, Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

SPACE = '▁'
"""SentencePiece's symbol for a space."""

COPY_FILES = 'copy the tokenizer files again'
MAX_MODEL_BYTES = 8 << 20
"""Of tokenizer.model; published ones have up to 5 MB. An empty piece takes 2 bytes, and 70 in
memory."""

MAX_PIECE_CHARACTERS = 256
MAX_PIECES, MAX_MERGES = 200_000, 500_000
"""InternLM2 has 92,544 pieces; most form in one to three ways."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of an InternLM2 checkpoint.

    Raises:
        BackendUnavailableError: The package sentencepiece is needed and does not load.
        ConfigError: Files are missing or damaged, or of another kind of tokenizer.
    """
    if (folder / TOKENIZER_FILE).is_file():
        return load_fast_tokenizer(folder, parameter='')
    with checkpoint_faults(folder, part='the tokenizer', parameter=''), held_stderr():
        path = folder / 'tokenizer.model'
        if not path.is_file():
            raise ConfigError(
                f'{folder} has no tokenizer.model and no tokenizer.json; copy the tokenizer files'
            )
        return _make_tokenizer(_read_model(path), _read_added_tokens(folder))


def _read_model(path: Path) -> Any:
    """Read a SentencePiece model; returns sentencepiece's ModelProto.

    Raises:
        ConfigError: It is not a BPE model, it has no unknown token, or a piece has no text.
    """
    model = _make_model_proto()
    model.ParseFromString(read_file(path, MAX_MODEL_BYTES))
    kind, allowed = model.trainer_spec.model_type, model.trainer_spec.BPE
    if kind != allowed:
        raise ConfigError(f'{path} is of kind {kind}, allowed: {allowed}, BPE; {COPY_FILES}')
    if not any(piece.type == piece.UNKNOWN for piece in model.pieces):
        raise ConfigError(f'{path} has no unknown token; {COPY_FILES}')
    if not all(piece.piece for piece in model.pieces):
        raise ConfigError(f'{path} has a piece without text; {COPY_FILES}')
    if len(model.pieces) > MAX_PIECES:
        raise ConfigError(
            f'{path} has {len(model.pieces)} pieces, allowed: up to {MAX_PIECES}; {COPY_FILES}'
        )
    longest = max(len(piece.piece) for piece in model.pieces)
    if longest > MAX_PIECE_CHARACTERS:
        raise ConfigError(
            f'{path} has a piece of {longest} characters, allowed: up to {MAX_PIECE_CHARACTERS}; '
            f'{COPY_FILES}'
        )
    return model


def _make_model_proto() -> Any:
    try:
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except Exception as err:  # protobuf's error for an old version has no public base class
        raise BackendUnavailableError(
            f'tokenizer.model needs sentencepiece, which does not load: {err}; install both: '
            'pip install --upgrade sentencepiece protobuf'
        ) from err
    return ModelProto()


def _read_added_tokens(folder: Path) -> dict[int, dict[str, Any]]:
    """Read the added tokens; returns id to entry, as tokenizer_config.json has them."""
    path = folder / 'tokenizer_config.json'
    entries = read_json_object(path).get('added_tokens_decoder', {})
    if not isinstance(entries, dict):
        raise ConfigError(
            f'{path}: added_tokens_decoder: got a {type(entries).__name__}, allowed: an object; '
            'copy it again'
        )
    added = dict(_check_added_token(path, *item) for item in entries.items())
    path = folder / 'added_tokens.json'
    if path.is_file():
        for content, token_id in read_json_object(path).items():
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


def _make_tokenizer(model: Any, added: Mapping[int, Mapping[str, Any]]) -> PreTrainedTokenizerFast:
    vocabulary = _make_vocabulary(model, added)
    unknown = next(piece.piece for piece in model.pieces if piece.type == piece.UNKNOWN)
    tokenizer = Tokenizer(
        BPE(
            vocabulary,
            _make_merges(model, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    _set_normalizer(tokenizer, model.normalizer_spec)
    # At once: the library builds its search for all tokens again in each call.
    tokenizer.add_tokens(_make_added_tokens(model, added))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token='<s>',
        eos_token='</s>',
        unk_token=unknown,
        pad_token='</s>',
        clean_up_tokenization_spaces=False,
    )


def _make_vocabulary(model: Any, added: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    """Return text to id; an added token replaces the unused piece with its id."""
    texts = [piece.piece for piece in model.pieces]
    for token_id, entry in added.items():
        if token_id > len(texts):
            raise ConfigError(
                f'tokenizer_config.json: added_tokens_decoder has no token {len(texts)}, but '
                f'{token_id}; {COPY_FILES}'
            )
        texts[token_id : token_id + 1] = [entry['content']]
    return {text: token_id for token_id, text in enumerate(texts)}


def _make_merges(model: Any, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return all pairs of pieces that form a piece; the piece with the best score comes first."""
    merges: list[tuple[str, str]] = []
    for piece in sorted(model.pieces, key=lambda piece: -piece.score):
        text = piece.piece
        if text not in vocabulary:
            continue
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        if len(merges) > MAX_MERGES:
            raise ConfigError(
                f'tokenizer.model: its pieces form in more than {MAX_MERGES} ways, allowed: up to '
                f'{MAX_MERGES}; {COPY_FILES}'
            )
    return merges


def _set_normalizer(tokenizer: Tokenizer, spec: Any) -> None:
    """Set normalizer and decoder from sentencepiece's NormalizerSpec."""
    charsmap = spec.precompiled_charsmap
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [
            normalizers.Replace(Regex(OUTER_SPACES), ''),
            normalizers.Replace(Regex(' +'), ' '),
        ]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(' ', SPACE)])
    back: list[Any] = [decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        back.append(decoders.Strip(' ', 1, 0))
    tokenizer.decoder = decoders.Sequence(back)


def _make_added_tokens(model: Any, added: Mapping[int, Mapping[str, Any]]) -> list[AddedToken]:
    """Return the pieces and the added tokens that are searched for in texts.

    Raises:
        ConfigError: They are too many, or too long together.
    """
    tokens = [
        _make_added_token(piece.piece, special=piece.type != piece.USER_DEFINED)
        for token_id, piece in enumerate(model.pieces)
        if piece.type in (piece.UNKNOWN, piece.CONTROL, piece.USER_DEFINED)
        and token_id not in added
    ]
    tokens += [
        _make_added_token(
            entry['content'],
            special=bool(entry.get('special', False)),
            lstrip=bool(entry.get('lstrip', False)),
            rstrip=bool(entry.get('rstrip', False)),
        )
        for entry in added.values()
    ]
    num_characters = sum(len(token.content) for token in tokens)
    check_added_tokens('tokenizer.model and its added tokens', len(tokens), num_characters)
    return tokens


def _make_added_token(text: str, *, special: bool, **options: bool) -> AddedToken:
    return AddedToken(text, normalized=False, special=special, **options)
