"""A checkpoint comes in; its loaded model, or only its vision part, goes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
import warnings

from p2d_node.checkpoints.checkpoint import Checkpoint
from p2d_node.checkpoints.fast_tokenizer import load_fast_tokenizer
from p2d_node.checkpoints.processor_template import processor_chat_template
from p2d_node.checkpoints.vision_fingerprint import hash_vision_weights
from p2d_node.errors import checkpoint_faults, ConfigError
from p2d_node.language_model.chat_template import ChatTemplate
from p2d_node.language_model.families.base import Family
from p2d_node.language_model.families.internvl import InternVL
from p2d_node.language_model.families.llava_onevision import LlavaOnevision
from p2d_node.language_model.families.qwen_vl import Qwen2VL, Qwen3VL, Qwen3VLMoe, Qwen25VL
from p2d_node.language_model.int8_linear import check_int8_encoder
from p2d_node.language_model.quantize import AS_IS, check_quantization, INT8
import torch
from torch import nn
from transformers.utils import logging as transformers_logging

FAMILIES: dict[str, Any] = {
    'llava_onevision': LlavaOnevision,
    'internvl': InternVL,
    'qwen2_vl': Qwen2VL,
    'qwen2_5_vl': Qwen25VL,
    'qwen3_vl': Qwen3VL,
    'qwen3_vl_moe': Qwen3VLMoe,
}
"""`model_type` of a checkpoint's config.json to the class that runs it."""


def find_family(checkpoint: Checkpoint) -> Any:
    """Return the class that runs `checkpoint`.

    Raises:
        ConfigError: No family has this `model_type`.
    """
    if checkpoint.model_type not in FAMILIES:
        raise ConfigError(
            f'model: {checkpoint.folder}: got family {checkpoint.model_type!r}, allowed: '
            f'{", ".join(FAMILIES)}; CONTRIBUTING.md says how to add a family'
        )
    return FAMILIES[checkpoint.model_type]


def load_family(
    checkpoint: Checkpoint,
    *,
    view_size: tuple[int, int] | None = None,
    dtype: torch.dtype,
    device: torch.device,
    weights: str = AS_IS,
    encoder_weights: str = AS_IS,
) -> Family:
    """Load tokenizer and weights of `checkpoint`.

    Args:
        checkpoint: The checkpoint.
        view_size: Height and width of pictures after preprocessing, pixels. None skips a check for
            families with a fixed size; Qwen-VL requires it.
        dtype: Number format of the weights.
        device: Device of the model.
        weights: Quantisation of the decoder layers: as_is, int8 or int4.
        encoder_weights: Quantisation of the vision part: as_is or int8.

    Raises:
        ConfigError: The tokenizer has no chat template, or weights are missing or do not match.
        BackendUnavailableError: Quantisation needs a library or device that is not available.
    """
    check_quantization(weights, dtype, device)
    if encoder_weights == INT8:
        check_int8_encoder(device)
    with _errors_only():
        tokenizer = _load_tokenizer(checkpoint.folder)
        family: Family = find_family(checkpoint).load(
            checkpoint.folder,
            tokenizer,
            ChatTemplate(tokenizer, checkpoint.prompt_layout),
            view_size=view_size,
            dtype=dtype,
            device=device,
            weights=weights,
            encoder_weights=encoder_weights,
        )
    return family


def _load_tokenizer(folder: Path) -> Any:
    tokenizer = load_fast_tokenizer(folder)
    tokenizer.chat_template = processor_chat_template(folder) or tokenizer.chat_template
    if not tokenizer.chat_template:
        raise ConfigError(
            f'model: {folder}: the tokenizer has no chat template; copy chat_template.jinja from '
            'the checkpoint'
        )
    return tokenizer


def load_vision_module(
    checkpoint: Checkpoint, view_size: tuple[int, int] | None = None
) -> nn.Module:
    """Load vision tower and projector of `checkpoint` in float32 on the CPU, for export.

    It uses eager attention: exported SDPA gave wrong results in TensorRT 10.7 (TensorRT issue
    4333).

    Args:
        checkpoint: The checkpoint.
        view_size: As in `load_family`.

    Returns:
        A module that maps pixel_values, float32 [pictures, 3, height, width], to visual_tokens,
        float32 [pictures, tokens, hidden].

    Raises:
        ConfigError: Weights are missing or do not match the config.
    """
    family = find_family(checkpoint)
    with _errors_only(), checkpoint_faults(checkpoint.folder):
        module: nn.Module = family.load_vision_module(
            checkpoint.folder, dtype=torch.float32, view_size=view_size
        )
    return module.eval()


@contextmanager
def _errors_only() -> Iterator[None]:
    """Silence the warnings of transformers and torch.

    They repeat texts of the checkpoint as they are, and list all weights of a part left out.
    torch's are about settings that then raise an error.
    """
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def hash_vision_part(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of the vision part's weights and settings; see `hash_vision_weights`."""
    return hash_vision_weights(checkpoint.folder, find_family(checkpoint).VISION_KEYS)
