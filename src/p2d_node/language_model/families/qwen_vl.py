"""Qwen-VL checkpoints of four kinds: pictures of any size, M-RoPE and deepstack features.

M-RoPE gives a token three positions: time, row and column. A picture uses as many positions as its
longer side has tokens. So the text after it has smaller positions than its place in the sequence.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
import math
from pathlib import Path
from typing import Any

from p2d_node.errors import ConfigError
from p2d_node.language_model.chat_template import ChatTemplate
from p2d_node.language_model.decode import Decoder
from p2d_node.language_model.families.chat import ChatModel, check_patches
from p2d_node.language_model.families.qwen_vision import QwenVision
from p2d_node.language_model.input_sequence import InputSequence, interleave_pictures
from p2d_node.language_model.model_loading import (
    load_vision_weights,
    load_weights,
    quantize_and_move,
)
from p2d_node.language_model.prompt import Prompt
import torch
from torch import nn, Tensor
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
)


class _QwenVL(ChatModel):
    """Base class of all generations; see `Family`.

    Attributes:
        decoder: The language model.
        grid: Rows and columns of the visual tokens of one picture.
    """

    VISION_KEYS = ('visual',)

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        chat_template: ChatTemplate,
        view_size: tuple[int, int],
    ) -> None:
        """Wrap a loaded model and its tokenizer; see `load`."""
        super().__init__(model, tokenizer, chat_template)
        vision = model.config.vision_config
        self.grid = _grid(view_size, vision)
        self.vision_module = QwenVision(model.model.visual, self.grid)
        self.decoder = Decoder(model.model.language_model, model.lm_head)
        self.num_features *= 1 + len(getattr(vision, 'deepstack_visual_indexes', ()))
        self._merge = vision.spatial_merge_size
        self._rope_index = model.model.get_rope_index
        self._mrope_positions = lru_cache(maxsize=4)(self._compute_positions)

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
    ) -> _QwenVL:
        """Load the safetensors checkpoint in `folder`; see `registry.load_family`."""
        view_size = _require_size(view_size, folder)
        model = load_weights(cls.MODEL_CLASS, folder, dtype=dtype)
        model = quantize_and_move(
            model,
            device,
            weights=weights,
            encoder_weights=encoder_weights,
            vision_keys=cls.VISION_KEYS,
        )
        return cls(model, tokenizer, chat_template, view_size)

    @classmethod
    def load_vision_module(
        cls, folder: Path, *, dtype: torch.dtype, view_size: tuple[int, int] | None
    ) -> nn.Module:
        """Load only the vision tower; see `registry.load_vision_module`."""
        model = load_vision_weights(cls.MODEL_CLASS, folder, cls.VISION_KEYS, dtype=dtype)
        grid = _grid(_require_size(view_size, folder), model.config.vision_config)
        return QwenVision(model.model.visual, grid)

    def embed_prefix(self, prompt: Prompt, visual_tokens: Tensor) -> InputSequence:
        """Return the prompt up to and including the last picture; see `Family`."""
        segments = [self.embed_ids(ids)[0] for ids in prompt.segments]
        hidden = self._embed_tokens.embedding_dim
        tokens, *deepstack = torch.split(visual_tokens, hidden, dim=-1)
        inputs = interleave_pictures(segments, tokens, newline=None)
        positions, end_position = self._mrope_positions(prompt.segments)
        return replace(
            inputs,
            positions=positions.to(tokens.device),
            end_position=end_position,
            deepstack=torch.stack([f.flatten(0, 1) for f in deepstack]) if deepstack else None,
        )

    def _compute_positions(self, segments: tuple[tuple[int, ...], ...]) -> tuple[Tensor, int]:
        """Return the positions of the full prefix, int64 [3, 1, length], and the next position."""
        rows, columns = self.grid
        token_ids: list[int] = []
        for segment in segments:
            token_ids += [*segment, *[self._image_token_id] * (rows * columns)]
        ids = torch.tensor([token_ids])
        patch_grid = (1, rows * self._merge, columns * self._merge)
        positions, delta = self._rope_index(
            ids,
            mm_token_type_ids=(ids == self._image_token_id).int(),
            image_grid_thw=torch.tensor([patch_grid] * len(segments)),
        )
        return positions, len(token_ids) + int(delta)


class Qwen2VL(_QwenVL):
    """Qwen2-VL and models trained from it."""

    MODEL_CLASS = Qwen2VLForConditionalGeneration


class Qwen25VL(_QwenVL):
    """Qwen2.5-VL and models trained from it: Cosmos-Reason1, AutoVLA, Impromptu-VLA."""

    MODEL_CLASS = Qwen2_5_VLForConditionalGeneration


class Qwen3VL(_QwenVL):
    """Qwen3-VL and models trained from it: Cosmos-Reason2."""

    MODEL_CLASS = Qwen3VLForConditionalGeneration


class Qwen3VLMoe(_QwenVL):
    """Qwen3-VL with a mixture of experts."""

    MODEL_CLASS = Qwen3VLMoeForConditionalGeneration


def _require_size(view_size: tuple[int, int] | None, folder: Path) -> tuple[int, int]:
    if view_size is None:
        raise ConfigError(
            f'model: {folder}: got no picture size, needed: height and width in pixels, because '
            'this family accepts pictures of any size'
        )
    return view_size


def _grid(view_size: tuple[int, int], vision: Any) -> tuple[int, int]:
    height, width = view_size
    token_px = vision.patch_size * vision.spatial_merge_size
    if height % token_px or width % token_px:
        raise ConfigError(
            f'picture size: got {height} x {width}, allowed: multiples of {token_px}; copy '
            'config.json and preprocessor_config.json from one checkpoint'
        )
    grid = height // token_px, width // token_px
    num_tokens = math.prod(grid)
    check_patches(vision, num_tokens * vision.spatial_merge_size**2, num_tokens)
    return grid
