"""Writes small LLaVA-OneVision checkpoints: tokenizer, settings and weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from p2d_node.durable_files import write_json
from tokenizers import models, pre_tokenizers, Regex, Tokenizer
from transformers import PreTrainedTokenizerFast

WORD_OR_MARK = r'\w+|[^\w\s]'


def make_word_tokenizer(
    special_tokens: Sequence[str],
    words: Iterable[str],
    *,
    end_token: str,
    chat_template: str,
    pattern: str = WORD_OR_MARK,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word.

    Args:
        special_tokens: The tokens with the first ids; the first one stands for unknown words.
        words: The tokens with the next ids; repeated words are dropped.
        end_token: The special token that ends an answer.
        chat_template: The chat template, in Jinja.
        pattern: Regular expression of a word.
    """
    tokens = dict.fromkeys((*special_tokens, *words))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special_tokens[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), 'removed', invert=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=special_tokens[0],
        eos_token=end_token,
        pad_token=end_token,
        additional_special_tokens=list(special_tokens[1:]),
    )
    fast.chat_template = chat_template
    return fast


def siglip_settings(side_px: int, *, pads: bool) -> dict[str, Any]:
    """Return the content of preprocessor_config.json for a SigLIP encoder.

    Args:
        side_px: Side of the square that a frame is resized to (bicubic), pixels.
        pads: Whether bars make the frame square first; otherwise its aspect ratio changes.
    """
    padding = {'do_pad': True, 'image_grid_pinpoints': [[side_px, side_px]]}
    return {
        'image_processor_type': f'{"LlavaOnevision" if pads else "Siglip"}ImageProcessor',
        'do_resize': True,
        'do_rescale': True,
        'do_normalize': True,
        'do_convert_rgb': True,
        'size': {'height': side_px, 'width': side_px},
        'resample': 3,
        'rescale_factor': 1 / 255,
        'image_mean': [0.5, 0.5, 0.5],
        'image_std': [0.5, 0.5, 0.5],
        **(padding if pads else {}),
    }


def write_checkpoint(
    folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast, *, pads: bool
) -> None:
    """Write config, weights, tokenizer and processor settings into `folder`, which is created.

    Args:
        folder: The folder to create.
        model: transformers' LLaVA-OneVision on the CPU, in the dtype of the file.
        tokenizer: Its tokenizer.
        pads: See `siglip_settings`.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    vision = model.config.vision_config
    files = {
        'preprocessor_config.json': siglip_settings(vision.image_size, pads=pads),
        'processor_config.json': {
            'processor_class': 'LlavaOnevisionProcessor',
            'num_image_tokens': (vision.image_size // vision.patch_size) ** 2,
            'vision_feature_select_strategy': 'full',
        },
    }
    for name, content in files.items():
        write_json(folder / name, content)
