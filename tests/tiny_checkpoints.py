"""Tiny checkpoints with random weights of every family, in the real on-disk format."""

from __future__ import annotations

import json
from pathlib import Path

from p2d_node.language_model.untrained import make_tokenizer
import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

CHAT = ('<unk>', '<|im_start|>', '<|im_end|>')
IMAGENET = {'image_mean': [0.485, 0.456, 0.406], 'image_std': [0.229, 0.224, 0.225]}


def chat_template(picture: str) -> str:
    """A template with the structure of the Qwen2 family's, with `picture` for each image."""
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }} "
        "{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{picture}"
        "{% else %}{{ part['text'] }}{% endif %}"
        '{% endfor %}<|im_end|>{% endfor %}'
        '{% if add_generation_prompt %}<|im_start|>assistant {% endif %}'
    )


def text_settings(tokenizer, **changes) -> dict:
    """Arguments of a small text model whose answers vary with the pictures."""
    return {
        'vocab_size': len(tokenizer),
        'hidden_size': 48,
        'intermediate_size': 96,
        'num_hidden_layers': 3,
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'max_position_embeddings': 4096,
        'initializer_range': 0.3,
        'tie_word_embeddings': False,
        **changes,
    }


def save(model_class, config, tokenizer, processor: dict, folder: Path, seed: int = 0) -> Path:
    """Write config, random weights, tokenizer and processor settings into `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        # Zeros and ones that real checkpoints do not have would hide faults.
        for parameter in model.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.data += 0.05 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / 'preprocessor_config.json').write_text(json.dumps(processor))
    return folder


def write_llava_llama(folder: Path) -> Path:
    """LLaVA-OneVision with a Llama text model; 5 x 5 tokens per view."""
    tokenizer = make_tokenizer((*CHAT, '<image>', '<video>'), chat_template('<image>'))
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=70,
            patch_size=14,
            vision_use_head=False,
        ),
        text_config=LlamaConfig(**text_settings(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids('<image>'),
        video_token_id=tokenizer.convert_tokens_to_ids('<video>'),
        vision_feature_layer=-1,
        vision_feature_select_strategy='full',
        tie_word_embeddings=False,
    )
    processor = {
        'image_processor_type': 'LlavaOnevisionImageProcessor',
        'size': {'height': 70, 'width': 70},
        'image_grid_pinpoints': [[70, 70]],
        'image_mean': [0.5] * 3,
        'image_std': [0.5] * 3,
    }
    return save(LlavaOnevisionForConditionalGeneration, config, tokenizer, processor, folder)


def write_internvl(folder: Path, *, text: type = Qwen2Config, vision_layers: int = 2) -> Path:
    """InternVL; 4 x 4 tokens per view."""
    tokenizer = make_tokenizer(
        (*CHAT, '<img>', '</img>', '<IMG_CONTEXT>', '<video>'), chat_template('<IMG_CONTEXT>')
    )
    config = InternVLConfig(
        vision_config={
            'hidden_size': 32,
            'intermediate_size': 64,
            'num_hidden_layers': vision_layers,
            'num_attention_heads': 2,
            'image_size': [56, 56],
            'patch_size': [7, 7],
            'attention_bias': True,
        },
        text_config=text(**text_settings(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids('<IMG_CONTEXT>'),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    processor = {
        'image_processor_type': 'GotOcr2ImageProcessorFast',
        'size': {'height': 56, 'width': 56},
        'crop_to_patches': False,
        **IMAGENET,
    }
    tokens = {
        'start_image_token': '<img>',
        'end_image_token': '</img>',
        'context_image_token': '<IMG_CONTEXT>',
        'video_token': '<video>',
    }
    save(InternVLForConditionalGeneration, config, tokenizer, processor, folder)
    path = folder / 'tokenizer_config.json'
    settings = json.loads(path.read_text()) | {'extra_special_tokens': tokens}
    path.write_text(json.dumps(settings))
    return folder


FAMILIES = {'llava_llama': write_llava_llama, 'internvl': write_internvl}
