"""Base classes of the families: chat templates, tokens, text embeddings, and sizes of pictures."""

from __future__ import annotations

from collections.abc import Sequence
import math
from pathlib import Path
import time
from typing import Any, TYPE_CHECKING

from p2d_node.errors import ConfigError, InferenceError, panics, quote
from p2d_node.language_model.chat_template import ChatTemplate
from p2d_node.language_model.families.attention_cost import check_text, check_vision
from p2d_node.language_model.input_sequence import (
    InputSequence,
    interleave_pictures,
    text_positions,
)
from p2d_node.language_model.model_loading import (
    load_vision_weights,
    load_weights,
    quantize_and_move,
)
from p2d_node.language_model.prompt import (
    describe_missing_views,
    describe_views,
    Prompt,
    split_at_images,
)
from p2d_node.views import MOSAIC_KEY
import torch
from torch import nn, Tensor

if TYPE_CHECKING:
    from typing_extensions import Self  # Humble has Python 3.10, whose typing lacks it

FIRST_CHARACTERS = 64
"""Of a text that a tokenizer is tried with."""

MAX_TOKENS_PER_CHARACTER, MORE_TOKENS = 4, 64
"""A character has up to four bytes; some have up to 18 letters, of which a text may have a few."""

MAX_STEP_S = 1.0
"""For up to 4,000 characters; tokenizers take milliseconds."""

MAX_PATCHES, MAX_TOKENS = 1 << 14, 1 << 12
"""Of one picture. Attention and selection take time and memory by their squares, which weights of
a megabyte do not show. Published models make up to 7,296 patches and 1,824 tokens of a frame."""


def check_view_size(view_size: tuple[int, int] | None, image_size: Any) -> None:
    """Check that preprocessing and vision encoder have the same picture size.

    Args:
        view_size: Height and width after preprocessing, pixels; None skips the check.
        image_size: `image_size` of the vision config: a side, or height and width, pixels.

    Raises:
        ConfigError: The sizes differ.
    """
    needed = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if view_size is not None and view_size != needed:
        raise ConfigError(
            f'model: its processor makes pictures of {view_size[0]} x {view_size[1]}, its vision '
            f'encoder takes {needed[0]} x {needed[1]}; copy config.json and '
            'preprocessor_config.json from one checkpoint'
        )


def check_patches(vision: Any, num_patches: int, num_tokens: int) -> None:
    """Check the number of patches and visual tokens that a model makes of one picture.

    Args:
        vision: The configuration of its vision tower.
        num_patches: The patches.
        num_tokens: The visual tokens.

    Raises:
        ConfigError: They are more than the vision encoder and the selection have memory for.
    """
    if num_patches > MAX_PATCHES or num_tokens > MAX_TOKENS:
        raise ConfigError(
            f'model: got {num_patches} patches and {num_tokens} visual tokens per picture, '
            f'allowed: up to {MAX_PATCHES} and {MAX_TOKENS}; copy config.json and '
            'preprocessor_config.json again, or lower view_max_pixels if the model takes views of '
            'any size'
        )
    check_vision(vision, num_patches)


def _check_fixed_size(config: Any, view_size: tuple[int, int] | None) -> None:
    """Check picture size and feature layers of a family whose pictures have one size."""
    vision = config.vision_config
    check_view_size(view_size, vision.image_size)
    sizes = (vision.image_size, vision.patch_size)
    images, patches = ([s, s] if isinstance(s, int) else s for s in sizes)
    num_patches = math.prod(side // patch for side, patch in zip(images, patches, strict=True))
    check_patches(vision, num_patches, num_patches)  # InternVL makes fewer tokens
    layers, last = config.vision_feature_layer, vision.num_hidden_layers
    numbers = [layers] if isinstance(layers, int) else layers
    if not numbers or not all(-last - 1 <= number <= last for number in numbers):
        raise ConfigError(
            f'model: config.json: vision_feature_layer: got {quote(layers)}, allowed: {-last - 1} '
            f'to {last}, as the vision tower has {last} layers; copy the checkpoint again'
        )


def _check_vocabulary(tokenizer: Any, num_embeddings: int, placeholder: int) -> None:
    # The placeholder is replaced by visual tokens, and needs no embedding.
    ids = {i: token for token, i in tokenizer.get_vocab().items() if i != placeholder}
    token_id = max(ids)
    if token_id >= num_embeddings:
        raise ConfigError(
            f'model: its tokenizer has the token {ids[token_id]!r} with id {token_id}, allowed: '
            f'ids below {num_embeddings}, the number of embeddings; copy the tokenizer files and '
            'the weights from one checkpoint'
        )


class ChatModel:
    """Base class of a loaded checkpoint with a chat template; see `Family`.

    Attributes:
        MODEL_CLASS: The transformers class.
        VISION_KEYS: Names of the submodules of the vision part. The names of its weights contain
            them, other names do not.
        vision_module: See `Family`.
        end_token_ids: Ids that end an answer.
        max_positions: Maximum number of tokens of the language model, visual tokens included.
        num_features: Features of a visual token.
    """

    MODEL_CLASS: Any
    VISION_KEYS: tuple[str, ...]

    vision_module: nn.Module

    def __init__(self, model: Any, tokenizer: Any, chat_template: ChatTemplate) -> None:
        """Wrap a loaded model, its tokenizer and its chat template."""
        self._model = model
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._image_token_id = int(model.config.image_token_id)
        self._mosaic_rows = getattr(model.config, MOSAIC_KEY, ())
        self._embed_tokens = model.get_input_embeddings()
        self.num_features = int(self._embed_tokens.embedding_dim)
        _check_vocabulary(
            tokenizer, self._embed_tokens.num_embeddings, placeholder=self._image_token_id
        )
        self.end_token_ids = _end_token_ids(model, tokenizer)
        self.max_positions = int(model.config.get_text_config().max_position_embeddings)
        self._special_ids = _special_token_ids(tokenizer) | {self._image_token_id}

    def check_num_tokens(self, num_tokens: int) -> None:
        """Check what a prompt of so many tokens costs; see `Family`."""
        check_text(self._model.config.get_text_config(), num_tokens)

    def release_vision_module(self) -> None:
        """Free the vision weights; an engine replaces them."""
        self.vision_module = nn.Identity()
        for name in self.VISION_KEYS:
            setattr(self._model.model, name, None)

    def build_prompt(self, question: str, cameras: Sequence[str], context: str = '') -> Prompt:
        """Tokenise the chat with its pictures and `question`; see `Family`."""
        num_pictures = 1 if self._mosaic_rows else len(cameras)
        token_ids = self.tokenize(self._write_chat(question, cameras, context))
        try:
            return split_at_images(
                self._add_image_delimiters(token_ids), self._image_token_id, num_pictures
            )
        except ValueError as err:
            raise ConfigError(
                f'model: its chat template gives {err}; use the template that came with the '
                'checkpoint, and no image placeholder in questions'
            ) from err

    def _write_chat(self, question: str, cameras: Sequence[str], context: str) -> str:
        template = self._chat_template
        if template.layout is not None:
            return template.render_layout(template.layout, cameras, question, context)
        text = f'{context} {question}' if context else question
        if not self._mosaic_rows:
            return template.render(len(cameras), f'{describe_views(cameras)} {text}')
        missing = [name for row in self._mosaic_rows for name in row if name not in cameras]
        return template.render(1, f'{describe_missing_views(missing)} {text}' if missing else text)

    def find_special_tokens(self, text: str) -> list[str]:
        """Return the special tokens in `text`, such as image placeholders and ends of turns.

        Raises:
            ConfigError: The tokenizer takes too long for it, or makes too many tokens of it.
        """
        found = [i for i in self._tokenize_in_steps(text) if i in self._special_ids]
        return [str(token) for token in self._tokenizer.convert_ids_to_tokens(found)]

    def _tokenize_in_steps(self, text: str) -> tuple[int, ...]:
        """Tokenise the beginning of `text`, then twice as much of it, up to the whole.

        So a text that a tokenizer is made to be slow for is noticed while it is short.
        """
        length = FIRST_CHARACTERS
        while True:
            started_s = time.monotonic()
            token_ids = self.tokenize(text[:length])
            duration_s = time.monotonic() - started_s
            num_characters = min(length, len(text))
            allowed = MAX_TOKENS_PER_CHARACTER * num_characters + MORE_TOKENS
            if len(token_ids) > allowed or duration_s > MAX_STEP_S:
                raise ConfigError(
                    f'model: its tokenizer makes {len(token_ids)} tokens of {num_characters} '
                    f'characters in {duration_s:.2g} s, allowed: up to {allowed} in '
                    f'{MAX_STEP_S:g} s; ask something else, or copy its files again'
                )
            if length >= len(text):
                return token_ids
            length *= 2

    def _add_image_delimiters(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Add the tokens that the family's processor puts around image placeholders, if any."""
        return token_ids

    def embed_text(self, token_ids: Sequence[int], start: int) -> InputSequence:
        """Return text whose first token has position `start`."""
        embeddings = self.embed_ids(token_ids)
        positions = text_positions(start, len(token_ids), embeddings.device)
        return InputSequence(embeddings, positions, start + len(token_ids))

    def embed_ids(self, token_ids: Sequence[int]) -> Tensor:
        """Return the embeddings of `token_ids`, float [1, length, hidden]."""
        device = self._embed_tokens.weight.device
        return self.embed(torch.tensor(token_ids, dtype=torch.int64, device=device)[None])

    @torch.inference_mode()
    def embed(self, token_ids: Tensor) -> Tensor:
        """Map ids, int64 [rows, length], to embeddings, float [rows, length, hidden]."""
        embeddings: Tensor = self._embed_tokens(token_ids)
        return embeddings

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Return the ids of `text`, without adding special tokens."""
        with panics('model: its tokenizer', ConfigError):
            return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of generated ids, without special tokens."""
        with panics('model: its tokenizer', InferenceError):
            return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))


class FixedSizeModel(ChatModel):
    """Base class of families with a fixed picture size and consecutive positions."""

    _newline: Tensor | None = None
    """Embedding [hidden] after every picture, if the family has one."""

    @classmethod
    def load(
        cls,
        folder: Path,
        tokenizer: Any,
        chat_template: ChatTemplate,
        *,
        view_size: tuple[int, int] | None,
        dtype: torch.dtype,
        device: torch.device,
        weights: str,
        encoder_weights: str,
    ) -> Self:
        """Load the safetensors checkpoint in `folder`; see `registry.load_family`."""
        model = load_weights(cls.MODEL_CLASS, folder, dtype=dtype)
        _check_fixed_size(model.config, view_size)
        model = quantize_and_move(
            model,
            device,
            weights=weights,
            encoder_weights=encoder_weights,
            vision_keys=cls.VISION_KEYS,
        )
        return cls(model, tokenizer, chat_template)

    @classmethod
    def load_vision_module(
        cls, folder: Path, *, dtype: torch.dtype, view_size: tuple[int, int] | None
    ) -> nn.Module:
        """Load only vision tower and projector; see `registry.load_vision_module`."""
        model = load_vision_weights(cls.MODEL_CLASS, folder, cls.VISION_KEYS, dtype=dtype)
        _check_fixed_size(model.config, view_size)
        return cls.make_vision_module(model)

    @staticmethod
    def make_vision_module(model: Any) -> nn.Module:
        """Return vision tower and projector of a loaded model as one module."""
        raise NotImplementedError

    def embed_prefix(self, prompt: Prompt, visual_tokens: Tensor) -> InputSequence:
        """Return the prompt up to and including the last picture; see `Family`."""
        segments = [self.embed_ids(ids)[0] for ids in prompt.segments]
        return interleave_pictures(segments, visual_tokens, self._newline)


def _special_token_ids(tokenizer: Any) -> set[int]:
    """Return the ids of special tokens, named or only added, except that of unknown words."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (set(tokenizer.all_special_ids) | added) - {tokenizer.unk_token_id}


def _end_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the end tokens of generation_config.json and of the tokenizer, ascending."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None}))
