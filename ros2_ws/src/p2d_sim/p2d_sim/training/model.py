"""The architecture of p2d-mini and its folder on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2d_node.checkpoints.checkpoint_files import write_checkpoint
import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What may differ between a model that ships and one for tests.

    Attributes:
        image_px: Side of the encoder's input.
        patch_px: Side of a patch.
        vision_hidden: Width of the encoder.
        vision_layers: Depth of the encoder.
        text_hidden: Width of the language model.
        text_layers: Depth of the language model.
    """

    image_px: int = 168
    patch_px: int = 12
    vision_hidden: int = 192
    vision_layers: int = 5
    text_hidden: int = 256
    text_layers: int = 5

    @property
    def grid(self) -> int:
        """Patches along a side of a view."""
        return self.image_px // self.patch_px

    @property
    def num_tokens(self) -> int:
        """Visual tokens per view."""
        return self.grid**2


MINI = ModelSize()
TINY = ModelSize(
    image_px=96, patch_px=12, vision_hidden=64, vision_layers=2, text_hidden=64, text_layers=3
)
"""For tests and the smoke run."""

HEAD_DIM = 64


def make_model(
    size: ModelSize, tokenizer: PreTrainedTokenizerFast, seed: int
) -> LlavaOnevisionForConditionalGeneration:
    """Return the model with fresh weights, float32, on the CPU."""
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=size.vision_hidden,
            intermediate_size=4 * size.vision_hidden,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=max(1, size.vision_hidden // HEAD_DIM),
            image_size=size.image_px,
            patch_size=size.patch_px,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=size.text_hidden,
            intermediate_size=3 * size.text_hidden,
            num_hidden_layers=size.text_layers,
            num_attention_heads=max(1, size.text_hidden // HEAD_DIM),
            num_key_value_heads=max(1, size.text_hidden // HEAD_DIM),
            max_position_embeddings=4096,
            rope_parameters={'rope_type': 'default', 'rope_theta': 1e6},
            tie_word_embeddings=False,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids('<image>'),
        video_token_id=tokenizer.convert_tokens_to_ids('<video>'),
        vision_feature_layer=-1,
        vision_feature_select_strategy='full',
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def export(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write config, weights, tokenizer and processor settings into `folder`.

    Args:
        model: On the CPU; it is converted to `dtype` in place.
        tokenizer: Its tokenizer.
        folder: Is created.
        dtype: Number format of the weights on disk.
    """
    write_checkpoint(folder, model.to(dtype), tokenizer, pads=False)
