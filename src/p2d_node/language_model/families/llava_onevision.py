"""LLaVA-OneVision checkpoints: SigLIP, a two-layer projector and a Llama or Qwen2 text model."""

from __future__ import annotations

from typing import Any

from p2d_node.language_model.chat_template import ChatTemplate
from p2d_node.language_model.decode import Decoder
from p2d_node.language_model.families.chat import FixedSizeModel
import torch
from torch import nn, Tensor
from transformers import LlavaOnevisionForConditionalGeneration


class _VisionModule(nn.Module):
    """Vision tower and projector; maps pixel_values to visual_tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_tower = model.vision_tower
        self.projector = model.multi_modal_projector
        self._layer = model.config.vision_feature_layer
        self._drop_class_token = model.config.vision_feature_select_strategy == 'default'

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map float [pictures, 3, height, width] to float [pictures, tokens, hidden]."""
        # Hidden states are features before the tower's last normalisation, as in training.
        hidden_states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        if isinstance(self._layer, int):
            features = hidden_states[self._layer]
        else:
            features = torch.cat([hidden_states[layer] for layer in self._layer], dim=-1)
        if self._drop_class_token:
            features = features[:, 1:]
        tokens: Tensor = self.projector(features)
        return tokens


class LlavaOnevision(FixedSizeModel):
    """A loaded checkpoint; see `Family`.

    Attributes:
        decoder: The language model.
        grid: Rows and columns of the visual tokens of one picture.
    """

    MODEL_CLASS = LlavaOnevisionForConditionalGeneration
    VISION_KEYS = ('vision_tower', 'multi_modal_projector')

    def __init__(self, model: Any, tokenizer: Any, chat_template: ChatTemplate) -> None:
        """Wrap a loaded model and its tokenizer; see `load`."""
        super().__init__(model, tokenizer, chat_template)
        self._newline = model.model.image_newline
        self.vision_module = self.make_vision_module(model)
        self.decoder = Decoder(model.model.language_model, model.lm_head)
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        self.grid = (side, side)

    @staticmethod
    def make_vision_module(model: Any) -> nn.Module:
        """Return vision tower and projector as one module; see `FixedSizeModel`."""
        return _VisionModule(model.model)
