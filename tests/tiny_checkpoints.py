"""Tiny checkpoints of every family with random weights, in the format of transformers."""

from __future__ import annotations

from functools import partial
import json
from pathlib import Path

from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.untrained import make_tokenizer
from p2d_node.language_model.families.registry import load_family
from p2d_node.preprocessing import ImageProcessing
import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SiglipVisionConfig,
)

CHAT = ('<unk>', '<|im_start|>', '<|im_end|>')
IMAGENET = {'image_mean': [0.485, 0.456, 0.406], 'image_std': [0.229, 0.224, 0.225]}


def chat_template(picture: str) -> str:
    """A template with the structure of Qwen2's, with `picture` for each image."""
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
        # Initial zeros and ones, which trained checkpoints do not have, would hide errors.
        for parameter in model.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.data += 0.05 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / 'preprocessor_config.json').write_text(json.dumps(processor))
    return folder


def write_llava(folder: Path, *, text: type = LlamaConfig) -> Path:
    """LLaVA-OneVision; 5 x 5 tokens per view."""
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
        text_config=text(**text_settings(tokenizer)),
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


def write_internvl(
    folder: Path, *, text: type = Qwen2Config, vision_layers: int = 2, tied: bool = False
) -> Path:
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
        text_config=text(**text_settings(tokenizer, tie_word_embeddings=tied)),
        image_token_id=tokenizer.convert_tokens_to_ids('<IMG_CONTEXT>'),
        image_seq_length=16,
        tie_word_embeddings=tied,
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


QWEN_TOKENS = ('<|vision_start|>', '<|image_pad|>', '<|vision_end|>', '<|video_pad|>')
M_ROPE = {'rope_type': 'default', 'rope_theta': 1e4, 'mrope_section': [2, 2, 2]}
QWEN3_VISION = {
    'depth': 3,
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_heads': 2,
    'patch_size': 4,
    'out_hidden_size': 48,
    'num_position_embeddings': 16,
    'deepstack_visual_indexes': [0, 1],
    'initializer_range': 0.3,
}
QWEN3_TEXT = {'head_dim': 12, 'rope_parameters': {**M_ROPE, 'mrope_interleaved': True}}
QWEN_PICTURE = '<|vision_start|><|image_pad|><|vision_end|>'


def qwen_settings(tokenizer) -> dict:
    """Arguments of both Qwen-VL configs: the ids of their special tokens."""
    names = ('vision_start_token_id', 'image_token_id', 'vision_end_token_id', 'video_token_id')
    ids = tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS))
    return {**dict(zip(names, ids, strict=True)), 'tie_word_embeddings': False}


def qwen_processor(patch_size: int, pixels: int) -> dict:
    """Settings of Qwen-VL's image processor; views have at most `pixels` pixels."""
    return {
        'image_processor_type': 'Qwen2VLImageProcessorFast',
        'size': {'shortest_edge': 784, 'longest_edge': pixels},
        'patch_size': patch_size,
        'temporal_patch_size': 2,
        'merge_size': 2,
        **IMAGENET,
    }


def save_qwen(config_class, model_class, folder: Path, *, vision: dict, **text) -> Path:
    """Write a Qwen-VL checkpoint with 3 x 6 tokens per view."""
    tokenizer = make_tokenizer((*CHAT, *QWEN_TOKENS), chat_template(QWEN_PICTURE))
    config = config_class(
        vision_config=vision,
        text_config={**text_settings(tokenizer), 'rope_parameters': M_ROPE, **text},
        **qwen_settings(tokenizer),
    )
    processor = qwen_processor(patch_size=4, pixels=1300)
    return save(model_class, config, tokenizer, processor, folder)


def write_qwen2_vl(folder: Path) -> Path:
    """Qwen2-VL."""
    vision = {
        'depth': 2,
        'embed_dim': 32,
        'hidden_size': 48,
        'mlp_ratio': 2,
        'num_heads': 2,
        'patch_size': 4,
        'initializer_range': 0.3,
    }
    return save_qwen(Qwen2VLConfig, Qwen2VLForConditionalGeneration, folder, vision=vision)


def write_qwen2_5_vl(folder: Path) -> Path:
    """Qwen2.5-VL, with windows of 2 x 2 tokens."""
    vision = {
        'depth': 2,
        'hidden_size': 32,
        'intermediate_size': 48,
        'num_heads': 2,
        'patch_size': 4,
        'window_size': 16,
        'out_hidden_size': 48,
        'fullatt_block_indexes': [1],
    }
    return save_qwen(Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, folder, vision=vision)


def write_qwen3_vl(folder: Path) -> Path:
    """Qwen3-VL with two deepstack layers."""
    model_class = Qwen3VLForConditionalGeneration
    return save_qwen(Qwen3VLConfig, model_class, folder, vision=QWEN3_VISION, **QWEN3_TEXT)


def write_qwen3_vl_moe(folder: Path) -> Path:
    """Qwen3-VL with two of four experts per token."""
    return save_qwen(
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
        folder,
        vision=QWEN3_VISION,
        **QWEN3_TEXT,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        decoder_sparse_step=1,
    )


WRITERS = {
    'llava_llama': write_llava,
    'llava_qwen2': partial(write_llava, text=Qwen2Config),
    'internvl_qwen2': write_internvl,
    'internvl_llama': partial(write_internvl, text=LlamaConfig),
    'qwen2_vl': write_qwen2_vl,
    'qwen2_5_vl': write_qwen2_5_vl,
    'qwen3_vl': write_qwen3_vl,
    'qwen3_vl_moe': write_qwen3_vl_moe,
}
"""Name to writer: every family with each of its text models."""


def load_float64(folder: Path):
    """Load a checkpoint in float64 on the CPU; the family knows its `view_size`."""
    processing = ImageProcessing.from_folder(folder)
    view_size = processing.height_px, processing.width_px
    family = load_family(
        open_checkpoint(folder),
        view_size=view_size,
        dtype=torch.float64,
        device=torch.device('cpu'),
    )
    family.view_size = view_size
    return family
