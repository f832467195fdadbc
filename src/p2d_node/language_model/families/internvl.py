"""InternVL 2.5 and 3 checkpoints in transformers' format: InternViT, pixel shuffle, projector.

The text model is Qwen2 or Llama (InternLM2 is converted to Llama). Every view is one tile, with
one token per 2 x 2 patches: 256 tokens at 448 px.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2d_node.errors import ConfigError, quote
from p2d_node.language_model.chat_template import ChatTemplate
from p2d_node.language_model.decode import Decoder
from p2d_node.language_model.families.chat import FixedSizeModel
from torch import nn, Tensor
from transformers import InternVLForConditionalGeneration


class _VisionModule(nn.Module):
    """Vision tower, pixel shuffle and projector; maps pixel_values to visual_tokens."""

    def __init__(self, model: Any, grid: tuple[int, int]) -> None:
        super().__init__()
        self.vision_tower = model.vision_tower
        self.projector = model.multi_modal_projector
        self._layer = model.config.vision_feature_layer
        if not isinstance(self._layer, int):
            raise ConfigError(
                f'model: config.json: vision_feature_layer: got {quote(self._layer)}, allowed: '
                'one layer; copy the checkpoint again'
            )
        self._drop_class_token = model.config.vision_feature_select_strategy == 'default'
        self._rows, self._columns = grid
        self._block = round(1 / model.config.downsample_ratio)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map float [pictures, 3, height, width] to float [pictures, tokens, hidden]."""
        features = self._features(pixel_values)
        if self._drop_class_token:
            features = features[:, 1:]
        tokens: Tensor = self.projector(self._pixel_shuffle(features))
        return tokens

    def _features(self, pixel_values: Tensor) -> Tensor:
        if self._layer == -1:
            last: Tensor = self.vision_tower(pixel_values).last_hidden_state
            return last
        # Hidden states are features before the tower's last normalisation.
        output = self.vision_tower(pixel_values, output_hidden_states=True)
        inner: Tensor = output.hidden_states[self._layer]
        return inner

    def _pixel_shuffle(self, features: Tensor) -> Tensor:
        """Concatenate the features of each block of patches to one token.

        Args:
            features: Float [pictures, patches, width], patches in row-major order.

        Returns:
            Float [pictures, tokens, width * block**2], tokens in row-major order.
        """
        pictures, _, width = features.shape
        side = self._block
        blocks = features.reshape(pictures, self._rows, side, self._columns, side, width)
        blocks = blocks.permute(0, 1, 3, 2, 4, 5)
        return blocks.reshape(pictures, self._rows * self._columns, side * side * width)


class InternVL(FixedSizeModel):
    """A loaded checkpoint; see `Family`.

    Attributes:
        decoder: The language model.
        grid: Rows and columns of the visual tokens of one picture.
    """

    MODEL_CLASS = InternVLForConditionalGeneration
    VISION_KEYS = ('vision_tower', 'multi_modal_projector')

    def __init__(self, model: Any, tokenizer: Any, chat_template: ChatTemplate) -> None:
        """Wrap a loaded model and its tokenizer; see `load`."""
        super().__init__(model, tokenizer, chat_template)
        self.grid = _grid(model.config)
        self.vision_module = self.make_vision_module(model)
        self.decoder = Decoder(model.model.language_model, model.lm_head)
        self._start_token_id = _token_id(tokenizer, 'start_image_token', '<img>')
        self._end_token_id = _token_id(tokenizer, 'end_image_token', '</img>')

    @staticmethod
    def make_vision_module(model: Any) -> nn.Module:
        """Return vision tower and projector as one module; see `FixedSizeModel`."""
        return _VisionModule(model.model, _grid(model.config))

    def _add_image_delimiters(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Add `<img>` and `</img>` around each placeholder, as the family's processor does."""
        delimited: list[int] = []
        for token_id in token_ids:
            if token_id == self._image_token_id:
                delimited += [self._start_token_id, token_id, self._end_token_id]
            else:
                delimited.append(token_id)
        return delimited


def _grid(config: Any) -> tuple[int, int]:
    vision = config.vision_config
    sides = zip(vision.image_size, vision.patch_size, strict=True)
    rows, columns = (int(image // patch * config.downsample_ratio) for image, patch in sides)
    return rows, columns


def _token_id(tokenizer: Any, attribute: str, default: str) -> int:
    token = getattr(tokenizer, attribute, None) or default
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id is None or token_id == tokenizer.unk_token_id:
        raise ConfigError(
            f'model: the tokenizer does not know {token!r}, which delimits pictures; '
            "copy the checkpoint's tokenizer files again"
        )
    return int(token_id)
