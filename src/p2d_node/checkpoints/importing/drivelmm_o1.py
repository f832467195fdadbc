"""Imports DriveLMM-o1, InternVL2.5-8B with LoRA in InternVL's own format.

The result is a checkpoint of transformers' InternVL with a Llama language model. The model takes
one picture in which all views are stitched together.
"""

from __future__ import annotations

from collections.abc import Mapping
import math
from pathlib import Path
from typing import Any

from p2d_node.checkpoints.importing.internlm2_tokenizer import load_tokenizer
from p2d_node.checkpoints.importing.internvl_weights import make_steps
from p2d_node.checkpoints.importing.plan import (
    checked_config,
    ImportPlan,
    jinja_literal,
    require,
    take_fields,
    TEXT_FIELDS,
    token_id,
)
from p2d_node.checkpoints.importing.streaming import Source
from p2d_node.checkpoints.settings_limits import check_limits
from p2d_node.checkpoints.weight_files import find_weight_files
from p2d_node.durable_files import read_json_object
from p2d_node.errors import ConfigError
from p2d_node.views import MOSAIC_KEY
from transformers import InternVLConfig, InternVLForConditionalGeneration, LlamaConfig

ADAPTER_CONFIG = 'adapter_config.json'
ADAPTER_FILE = 'adapter_model.safetensors'

VISION_FIELDS = (
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'image_size',
    'patch_size',
)

MOSAIC = (
    ('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT'),
    ('CAM_BACK_RIGHT', 'CAM_BACK', 'CAM_BACK_LEFT'),
)
"""Rows of the stitched picture. The authors publish stitched pictures and do not document their
order; public code that reads their data uses this one."""

LARGEST_LORA = 1_000_000
"""Largest rank or alpha that is accepted."""

IMAGE_TOKEN = '<IMG_CONTEXT>'
END_TOKEN = '<|im_end|>'
SYSTEM_MESSAGE = (
    '你是书生·万象，英文名是InternVL，是由上海人工智能实验室、'
    '清华大学及多家合作单位联合开发的多模态大语言模型。'
)
"""System message of the conversation template internvl2_5."""

INSTRUCTION = (
    'When answering the question based on the provided image, follow a structured and logical '
    'reasoning process. Organize your response using the format, ensuring each step builds upon '
    'the previous one and clearly explains how the image(s) contribute to the solution. Your '
    'answer should be structured as Reasoning Steps: (step by step reasoning) Final Answer: '
    '(final answer) \n Question: '
)
"""The text that the authors' evaluation puts before the picture and the question."""


def plan_import(folder: Path, base: Path | None = None) -> ImportPlan:
    """Plan the import of the checkpoint in `folder`.

    Args:
        folder: A whole model, with LoRA merged or beside its weights; or a LoRA adapter.
        base: If `folder` is an adapter: the model that the adapter was trained on.

    Raises:
        ConfigError: A file is missing or damaged, or the checkpoint is of another format.
    """
    model_folder = _find_model(folder, base)
    check_limits(model_folder, parameter='folder')
    config = read_json_object(model_folder / 'config.json')
    _check_format(config)
    shards, lora_scale = find_weight_files(model_folder, parameter='folder'), None
    if base is not None:
        shards += find_weight_files(folder, parameter='folder', file_name=ADAPTER_FILE)
        lora_scale = _adapter_scale(folder)
    source = Source(shards)
    tokenizer = load_tokenizer(model_folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    steps, unexpected = make_steps(source, config, lora_scale)
    with checked_config():
        new_config = _make_config(config, token_id(tokenizer, IMAGE_TOKEN))
    return ImportPlan(
        source=source,
        steps=steps,
        unexpected=unexpected,
        model_class=InternVLForConditionalGeneration,
        config=new_config,
        tokenizer=tokenizer,
        end_token_ids=[token_id(tokenizer, END_TOKEN)],
        image_processor=_image_processor(config),
        notes=_notes(source),
    )


def _find_model(folder: Path, base: Path | None) -> Path:
    """Return the folder of the whole model: `base` if `folder` is an adapter, else `folder`."""
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if is_adapter and base is None:
        raise ConfigError(
            f'base: got none, but {folder} is a LoRA adapter; name the model that it was trained '
            'on'
        )
    if base is not None and not is_adapter:
        raise ConfigError(
            f'base: got {str(base)!r}, allowed only with a LoRA adapter, and {folder} has no '
            f'{ADAPTER_CONFIG}'
        )
    return base or folder


def _check_format(config: Mapping[str, Any]) -> None:
    require(config, 'model_type', ('internvl_chat',), None)
    require(config, 'ps_version', ('v2',), 'v1')
    require(config, 'select_layer', (-1,), -1)
    require(config, 'pad2square', (False,), False)
    require(config, 'template', ('internvl2_5',), None)
    text, vision = (_take_part(config, name) for name in ('llm_config', 'vision_config'))
    require(text, 'architectures', (['InternLM2ForCausalLM'],), None)
    require(text, 'hidden_act', ('silu',), 'silu')
    require(text, 'tie_word_embeddings', (False,), False)
    require(text, 'rope_pos_id_version', ('default',), 'default')
    if text.get('rope_scaling'):
        require(_take_part(text, 'rope_scaling'), 'type', ('dynamic',), 'dynamic')
    require(config, 'force_image_size', (None, vision.get('image_size')), None)


def _take_part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = take_fields(config, [name])[name]
    if not isinstance(part, dict):
        raise ConfigError(f'config.json: {name}: got a {type(part).__name__}, allowed: an object')
    return part


def _adapter_scale(folder: Path) -> float:
    """Return the factor of an adapter's product B A, the same for all layers."""
    settings = read_json_object(folder / ADAPTER_CONFIG)
    require(settings, 'peft_type', ('LORA',), None)
    require(settings, 'bias', ('none',), 'none')
    require(settings, 'fan_in_fan_out', (False,), False)
    require(settings, 'use_dora', (False,), False)
    require(settings, 'rank_pattern', ({}, None), None)
    require(settings, 'alpha_pattern', ({}, None), None)
    fields = take_fields(settings, ['lora_alpha', 'r'])
    for name, value in fields.items():
        if not isinstance(value, int | float) or not 0 < value <= LARGEST_LORA:
            raise ConfigError(
                f'{ADAPTER_CONFIG}: {name}: got {value!r}, allowed: above 0 to {LARGEST_LORA}; '
                'copy it again'
            )
    alpha, rank = fields['lora_alpha'], fields['r']
    return float(alpha / (math.sqrt(rank) if settings.get('use_rslora') else rank))


def _make_config(config: Mapping[str, Any], image_token_id: int) -> InternVLConfig:
    vision = _vision_config(config['vision_config'])
    ratio = float(config.get('downsample_ratio', 0.5))
    side = vision['image_size'] // vision['patch_size']
    return InternVLConfig(
        vision_config=vision,
        text_config=_text_config(config['llm_config']),
        image_token_id=image_token_id,
        image_seq_length=int(side * ratio) ** 2,
        downsample_ratio=ratio,
        projector_hidden_act='gelu',
        vision_feature_layer=-1,
        vision_feature_select_strategy='default',
        tie_word_embeddings=False,
        **{MOSAIC_KEY: [list(row) for row in MOSAIC]},
    )


def _vision_config(vision: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **take_fields(vision, VISION_FIELDS),
        'attention_bias': bool(vision.get('qkv_bias', False)),
        'use_qk_norm': bool(vision.get('qk_normalization', True)),
        'norm_type': vision.get('norm_type', 'rms_norm'),
        'layer_norm_eps': vision.get('layer_norm_eps', 1e-6),
        'hidden_act': vision.get('hidden_act', 'gelu'),
    }


def _text_config(text: Mapping[str, Any]) -> LlamaConfig:
    fields = take_fields(text, (*TEXT_FIELDS, 'rope_theta'))
    rope_theta = float(fields.pop('rope_theta'))
    return LlamaConfig(
        **fields,
        # Dynamic scaling changes nothing below max_position_embeddings; prompts are shorter.
        rope_parameters={'rope_type': 'default', 'rope_theta': rope_theta},
        attention_bias=bool(text.get('bias', True)),
        mlp_bias=False,
        bos_token_id=text.get('bos_token_id', 1),
        eos_token_id=text.get('eos_token_id', 2),
        tie_word_embeddings=False,
    )


def _image_processor(config: Mapping[str, Any]) -> dict[str, Any]:
    side = config['vision_config']['image_size']
    return {
        'image_processor_type': 'GotOcr2ImageProcessorFast',
        'do_resize': True,
        'do_rescale': True,
        'do_normalize': True,
        'do_convert_rgb': True,
        'crop_to_patches': False,
        'size': {'height': side, 'width': side},
        'resample': 3,
        'rescale_factor': 1 / 255,
        'image_mean': [0.485, 0.456, 0.406],
        'image_std': [0.229, 0.224, 0.225],
    }


def _notes(source: Source) -> list[str]:
    num_merged = sum('.lora_A.' in name for name in source.names)
    rows = ' / '.join(' '.join(row) for row in MOSAIC)
    return [
        f'LoRA was merged into {num_merged} layers',
        f'the node stitches all views into one picture: {rows}; the authors do not document '
        f'their order: compare with your training data and edit {MOSAIC_KEY} in config.json',
    ]


CHAT_TEMPLATE = (
    f'{{{{ bos_token }}}}<|im_start|>system\n{{{{ {jinja_literal(SYSTEM_MESSAGE)} }}}}<|im_end|>\n'
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    f"{{{{ {jinja_literal(INSTRUCTION)} ~ '\\n{IMAGE_TOKEN}\\n' }}}}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
"""The conversation template internvl2_5, with the authors' instruction before the picture."""
