"""Writes a tiny LLaVA-OneVision checkpoint with random weights, for tests and trials.

It has the input size and the token counts of DriveMM: 384 px, 27 x 27 = 729 tokens per view.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from p2d_node.checkpoints.checkpoint import UNTRAINED_KEY
from p2d_node.checkpoints.checkpoint_files import make_word_tokenizer, write_checkpoint
import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.utils import logging as transformers_logging

SPECIAL_TOKENS = ('<unk>', '<|im_start|>', '<|im_end|>', '<image>', '<video>')
WORDS = (
    'user assistant These images are the front left right back view of ego vehicle and What '
    'important objects in current scene should do next why Is there a car truck bus pedestrian '
    'cyclist traffic light sign lane road ahead behind keep speed slow down stop turn yes no it '
    'because to is one two three four five six moving waiting crossing near far red green . , ?'
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    '{% endfor %}<|im_end|>{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant {% endif %}'
)


def make_tokenizer(
    special_tokens: Sequence[str] = SPECIAL_TOKENS, chat_template: str = CHAT_TEMPLATE
) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer with a chat template.

    Args:
        special_tokens: The tokens with the first ids; `<unk>`, `<|im_start|>` and `<|im_end|>`
            come first.
        chat_template: The chat template, in Jinja.
    """
    return make_word_tokenizer(
        special_tokens, WORDS.split(), end_token='<|im_end|>', chat_template=chat_template
    )


def write_untrained_checkpoint(
    folder: Path, *, image_size: int = 384, patch_size: int = 14, seed: int = 0
) -> Path:
    """Write the checkpoint into `folder`, which is created, and return it.

    Args:
        folder: The folder for config, weights, tokenizer and processor settings.
        image_size: Side of the encoder's input, pixels.
        patch_size: Side of a patch, pixels.
        seed: Seed of the random weights.
    """
    tokenizer = make_tokenizer()
    config = _tiny_config(tokenizer, image_size, patch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    transformers_logging.disable_progress_bar()
    write_checkpoint(folder, model, tokenizer, pads=True)
    return folder


def _tiny_config(
    tokenizer: PreTrainedTokenizerFast, image_size: int, patch_size: int
) -> LlavaOnevisionConfig:
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=patch_size,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32768,
            initializer_range=0.3,  # large, so that answers depend on the pictures
            tie_word_embeddings=False,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids('<image>'),
        video_token_id=tokenizer.convert_tokens_to_ids('<video>'),
        vision_feature_layer=-1,
        vision_feature_select_strategy='full',
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        **{UNTRAINED_KEY: True},
    )
