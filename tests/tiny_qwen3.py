"""A tiny Qwen3-VL whose tokenizer knows every byte, with the structure of Qwen's template."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_checkpoints import qwen_processor, qwen_settings, save, text_settings
from tokenizers import AddedToken, decoders, models, pre_tokenizers, Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

SPECIAL_TOKENS = (
    '<|endoftext|>',
    '<|im_start|>',
    '<|im_end|>',
    '<|vision_start|>',
    '<|vision_end|>',
    '<|image_pad|>',
    '<|video_pad|>',
)

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    '{% endfor %}<|im_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)

VISION = {
    'depth': 3,
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_heads': 2,
    'patch_size': 16,
    'out_hidden_size': 48,
    'num_position_embeddings': 64,
    'deepstack_visual_indexes': [0, 1],
    'initializer_range': 0.3,
}
TEXT = {
    'head_dim': 12,
    'max_position_embeddings': 16384,
    'rope_parameters': {
        'rope_type': 'default',
        'rope_theta': 1e4,
        'mrope_section': [2, 2, 2],
        'mrope_interleaved': True,
    },
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows every byte and gives back exactly what it read."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token='<|im_end|>',
        pad_token='<|endoftext|>',
        extra_special_tokens={
            'image_token': '<|image_pad|>',
            'video_token': '<|video_pad|>',
            'vision_bos_token': '<|vision_start|>',
            'vision_eos_token': '<|vision_end|>',
        },
    )
    fast.chat_template = TEMPLATE
    return fast


def write_byte_qwen3_vl(
    folder: Path, *, pixels: int = 9216, marks: tuple[str, ...] = (), layout: dict | None = None
) -> Path:
    """Qwen3-VL with a byte tokenizer.

    Args:
        folder: The folder to create.
        pixels: Largest number of pixels of a view; a token has 32 x 32.
        marks: Further special tokens.
        layout: The value of p2d_prompt in config.json.
    """
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(marks), special_tokens=True)
    config = Qwen3VLConfig(
        vision_config=VISION,
        text_config={**text_settings(tokenizer), **TEXT},
        **qwen_settings(tokenizer),
    )
    processor = qwen_processor(patch_size=16, pixels=pixels)
    save(Qwen3VLForConditionalGeneration, config, tokenizer, processor, folder)
    if layout is not None:
        path = folder / 'config.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | {'p2d_prompt': layout}))
    return folder
