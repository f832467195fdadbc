"""The architecture of p2d-mini; loading and writing its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.checkpoint_files import write_checkpoint
from p2d_node.checkpoints.fast_tokenizer import load_fast_tokenizer
from p2d_node.errors import checkpoint_faults, ConfigError, quote
from p2d_node.language_model.model_loading import load_weights
import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from p2d_sim.training.plan import ModelSize

HEAD_DIM = 64
MODEL_TYPE = 'llava_onevision'


def make_model(
    size: ModelSize, tokenizer: PreTrainedTokenizerFast, seed: int
) -> LlavaOnevisionForConditionalGeneration:
    """Return the model with random weights, float32, on the CPU."""
    config = _make_config(size, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def _make_config(size: ModelSize, tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionConfig:
    vision = SiglipVisionConfig(
        hidden_size=size.vision_hidden,
        intermediate_size=4 * size.vision_hidden,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=max(1, size.vision_hidden // HEAD_DIM),
        image_size=size.image_px,
        patch_size=size.patch_px,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.text_hidden,
        intermediate_size=3 * size.text_hidden,
        num_hidden_layers=size.text_layers,
        num_attention_heads=max(1, size.text_hidden // HEAD_DIM),
        num_key_value_heads=max(1, size.text_hidden // HEAD_DIM),
        max_position_embeddings=8192,
        rope_parameters={'rope_type': 'default', 'rope_theta': 1e6},
        tie_word_embeddings=False,
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids('<image>'),
        video_token_id=tokenizer.convert_tokens_to_ids('<video>'),
        vision_feature_layer=-1,
        vision_feature_select_strategy='full',
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
    )


def load_trained(parameter: str, folder: Path) -> tuple[Any, Any]:
    """Return tokenizer and model of the checkpoint in `folder`, float32 on the CPU.

    Args:
        parameter: Parameter that names the folder, for the error.
        folder: The checkpoint.

    Raises:
        ConfigError: The folder holds no trained model.
    """
    try:
        checkpoint = open_checkpoint(folder)
        if checkpoint.model_type != MODEL_TYPE:
            raise ConfigError(f'got family {quote(checkpoint.model_type)}, allowed: {MODEL_TYPE}')
        tokenizer = load_fast_tokenizer(folder)
        with checkpoint_faults(folder):
            model = load_weights(
                LlavaOnevisionForConditionalGeneration, folder, dtype=torch.float32
            )
    except ConfigError as err:
        reason = str(err).removeprefix('model: ')
        raise ConfigError(f'{parameter}: {folder} holds no trained model: {reason}') from err
    return tokenizer, model


def export(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint: config, weights, tokenizer and processor settings.

    Args:
        model: The model, on the CPU; converted to `dtype` in place.
        tokenizer: Its tokenizer.
        folder: Folder to create.
        dtype: Number format of the weights in the file.
    """
    write_checkpoint(folder, model.to(dtype), tokenizer, pads=False)
