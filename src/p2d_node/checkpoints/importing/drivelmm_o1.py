"""DriveLMM-o1: InternVL2.5-8B with LoRA, in InternVL's own names, becomes transformers' InternVL.

LoRA is merged, InternLM2 becomes Llama, and what is fused there (query, key and value) is split.
The model takes one picture in which all views are stitched together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
import json
import math
from pathlib import Path
import re
from typing import Any

from p2d_node.checkpoints.importing.internlm2_tokenizer import load_tokenizer
from p2d_node.checkpoints.importing.plan import (
    checked_config,
    ImportPlan,
    require,
    take_fields,
    TEXT_FIELDS,
)
from p2d_node.checkpoints.importing.streaming import (
    Convert,
    find_shards,
    keep,
    read_json,
    Source,
    Step,
)
from p2d_node.errors import ConfigError
from p2d_node.views import MOSAIC_KEY
import torch
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration, LlamaConfig

ADAPTER_CONFIG = 'adapter_config.json'

VISION = 'model.vision_tower.'
TEXT = 'model.language_model.'
RENAMED = {
    'vision_model.embeddings.class_embedding': f'{VISION}embeddings.cls_token',
    'vision_model.embeddings.position_embedding': f'{VISION}embeddings.position_embeddings',
    'vision_model.embeddings.patch_embedding': f'{VISION}embeddings.patch_embeddings.projection',
    'mlp1.0': 'model.multi_modal_projector.layer_norm',
    'mlp1.1': 'model.multi_modal_projector.linear_1',
    'mlp1.3': 'model.multi_modal_projector.linear_2',
    'language_model.model.tok_embeddings': f'{TEXT}embed_tokens',
    'language_model.model.norm': f'{TEXT}norm',
    'language_model.output': 'lm_head',
}
"""InternVL's names outside layers, and transformers'; `.weight` or `.bias` follows in both."""

VISION_LAYER = {
    'ls1': 'lambda_1',
    'ls2': 'lambda_2',
    'norm1': 'layernorm_before',
    'norm2': 'layernorm_after',
    'attn.proj': 'attention.projection_layer',
    'attn.q_norm': 'attention.q_norm',
    'attn.k_norm': 'attention.k_norm',
    'mlp.fc1': 'mlp.fc1',
    'mlp.fc2': 'mlp.fc2',
}
TEXT_LAYER = {
    'attention.wo': 'self_attn.o_proj',
    'attention_norm': 'input_layernorm',
    'ffn_norm': 'post_attention_layernorm',
    'feed_forward.w1': 'mlp.gate_proj',
    'feed_forward.w2': 'mlp.down_proj',
    'feed_forward.w3': 'mlp.up_proj',
}
LAYERS = (
    (re.compile(r'vision_model\.encoder\.layers\.(\d+)\.'), f'{VISION}encoder.layer.'),
    (re.compile(r'language_model\.model\.layers\.(\d+)\.'), f'{TEXT}layers.'),
)
COMPUTED = re.compile(r'\.rotary_emb\.inv_freq$')
"""Names of constants that some checkpoints store; models compute them."""

WRAPPERS = re.compile(r'base_model\.model\.|\.base_layer\b|(?<=lora_[AB])\.default\b')
"""What peft adds to the names of what it wraps."""

LORA = re.compile(r'(.+)\.lora_([AB])\.weight$')

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
"""Rows of the stitched picture. The authors' code takes finished pictures and does not say; public
code that reads their data has the views in this order, three per row."""

INTERNVL_ALPHA_BY_RANK = 2
"""InternVL's LoRA: alpha is twice the rank."""

LARGEST_LORA = 1_000_000
"""Rank or alpha above which a number is no adapter's."""

IMAGE_TOKEN = '<IMG_CONTEXT>'
END_TOKEN = '<|im_end|>'
SYSTEM_MESSAGE = (
    '你是书生·万象，英文名是InternVL，是由上海人工智能实验室、'
    '清华大学及多家合作单位联合开发的多模态大语言模型。'
)
"""Of the conversation template internvl2_5."""

INSTRUCTION = (
    'When answering the question based on the provided image, follow a structured and logical '
    'reasoning process. Organize your response using the format, ensuring each step builds upon '
    'the previous one and clearly explains how the image(s) contribute to the solution. Your '
    'answer should be structured as Reasoning Steps: (step by step reasoning) Final Answer: '
    '(final answer) \n Question: '
)
"""What the authors' evaluation puts before the picture and the question."""


def plan_import(folder: Path, base: Path | None = None) -> ImportPlan:
    """Translate the checkpoint in `folder`.

    Args:
        folder: The whole model, with LoRA beside its weights or merged; or a LoRA adapter.
        base: Where `folder` is an adapter, the model that it belongs to.

    Raises:
        ConfigError: A file that is missing or broken, or a checkpoint of another kind.
    """
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if is_adapter and base is None:
        raise ConfigError(f'{folder} is a LoRA adapter: name the model it belongs to with --base')
    if base is not None and not is_adapter:
        raise ConfigError(f'base: {folder} has no {ADAPTER_CONFIG}, so it is no LoRA adapter')
    home = base or folder
    config = read_json(home / 'config.json')
    _check_kind(config)
    shards = [*find_shards(home), *(find_shards(folder) if is_adapter else ())]
    source = Source(shards)
    lora_scale = _adapter_scale(folder) if is_adapter else None
    tokenizer = load_tokenizer(home)
    tokenizer.chat_template = CHAT_TEMPLATE
    steps, unexpected = _make_steps(source, config, lora_scale)
    with checked_config():
        new_config = _make_config(config, _token_id(tokenizer, IMAGE_TOKEN))
    return ImportPlan(
        source=source,
        steps=steps,
        unexpected=unexpected,
        model_class=InternVLForConditionalGeneration,
        config=new_config,
        tokenizer=tokenizer,
        end_token_ids=[_token_id(tokenizer, END_TOKEN)],
        image_processor=_image_processor(config),
        notes=_notes(source),
    )


def _check_kind(config: Mapping[str, Any]) -> None:
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


@dataclass(frozen=True, slots=True)
class _Adapter:
    """Names of a layer's LoRA: the weights are B A, of rank `rank`."""

    down: str
    up: str
    rank: int


def _make_steps(
    source: Source, config: Mapping[str, Any], lora_scale: float | None
) -> tuple[list[Step], list[str]]:
    """Return how all tensors are converted, and the names of those that nothing is known of."""
    plain, adapters, unexpected = _sort_names(source)
    text = config['llm_config']
    groups = partial(
        split_groups, text.get('num_attention_heads', 1), text.get('num_key_value_heads', 1)
    )
    steps: list[Step] = []
    for name, stored in plain.items():
        targets, convert = _targets_of(name, groups)
        if not targets:
            unexpected.append(stored)
            continue
        stem = name.removesuffix('.weight')
        adapter = adapters.pop(stem, None) if stem != name else None
        if adapter is None:
            steps.append(Step((stored,), targets, convert))
            continue
        scale = lora_scale if lora_scale is not None else _wrapped_scale(stem, adapter, config)
        merge = partial(_merge_then, convert, scale)
        steps.append(Step((stored, adapter.down, adapter.up), targets, merge))
    unexpected += [n for adapter in adapters.values() for n in (adapter.down, adapter.up)]
    return steps, unexpected


def _sort_names(source: Source) -> tuple[dict[str, str], dict[str, _Adapter], list[str]]:
    """Return weights by InternVL's name, LoRA by the name of its layer, and odd names."""
    plain: dict[str, str] = {}
    sides: dict[str, dict[str, str]] = {}
    odd: list[str] = []
    for stored in source.names:
        name = WRAPPERS.sub('', stored)
        if name.startswith('model.layers.'):
            name = f'language_model.{name}'  # an adapter of the language model alone
        match = LORA.match(name)
        if match:
            sides.setdefault(match[1], {})[match[2]] = stored
        elif name in plain:
            odd.append(stored)  # the same weight twice, once with a wrapper around it
        elif not COMPUTED.search(name):
            plain[name] = stored
    adapters: dict[str, _Adapter] = {}
    for stem, pair in sides.items():
        if len(pair) == 2:
            adapters[stem] = _Adapter(pair['A'], pair['B'], source.shape(pair['A'])[0])
        else:
            odd += pair.values()
    return plain, adapters, odd


def _targets_of(name: str, groups: Convert) -> tuple[tuple[str, ...], Convert]:
    """Return the new names of InternVL's `name`, none where it is not known, and the way there."""
    stem, _, kind = name.rpartition('.')
    if kind not in ('weight', 'bias'):
        stem, ending = name, ''
    else:
        ending = f'.{kind}'
    if stem in RENAMED:
        return (RENAMED[stem] + ending,), keep
    for pattern, prefix in LAYERS:
        match = pattern.match(stem)
        if match:
            layer, part = f'{prefix}{match[1]}.', stem[match.end() :]
            return _layer_targets(layer, part, ending, groups)
    return (), keep


def _layer_targets(
    layer: str, part: str, ending: str, groups: Convert
) -> tuple[tuple[str, ...], Convert]:
    is_vision = layer.startswith(VISION)
    if part == ('attn.qkv' if is_vision else 'attention.wqkv'):
        attention = f'{layer}{"attention" if is_vision else "self_attn"}'
        names = tuple(f'{attention}.{side}_proj{ending}' for side in 'qkv')
        return names, split_thirds if is_vision else groups
    part = (VISION_LAYER if is_vision else TEXT_LAYER).get(part, '')
    return ((f'{layer}{part}{ending}',) if part else ()), keep


def split_thirds(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Split InternViT's fused [3 * width, ...] into query, key and value, which it stacks."""
    (fused,) = tensors
    return [third.clone() for third in fused.chunk(3)]


def split_groups(num_heads: int, num_shared: int, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Split InternLM2's fused projection into query, key and value.

    Its rows stand by key-value head: the query heads that share it, then its key, then its value.

    Args:
        num_heads: Query heads.
        num_shared: Key-value heads.
        tensors: The fused one: [num_shared * (num_heads / num_shared + 2) * head_dim, ...].
    """
    (fused,) = tensors
    per_group = num_heads // num_shared
    grouped = fused.reshape(num_shared, per_group + 2, -1, *fused.shape[1:])
    query, key, value = grouped[:, :per_group], grouped[:, -2:-1], grouped[:, -1:]
    return [part.flatten(0, 2).clone() for part in (query, key, value)]


def merge_lora(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return `weight` + `scale` * `up` `down`, rounded once to the format of `weight`.

    Args:
        weight: [rows, columns].
        down: LoRA's A, [rank, columns].
        up: LoRA's B, [rows, rank].
        scale: Alpha by rank.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    merged = torch.addmm(weight.to(wide), up.to(wide), down.to(wide), alpha=scale)
    return merged.to(weight.dtype)


def _merge_then(convert: Convert, scale: float, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    weight, down, up = tensors
    return convert([merge_lora(weight, down, up, scale)])


def _wrapped_scale(stem: str, adapter: _Adapter, config: Mapping[str, Any]) -> float:
    """Return the scale of LoRA that InternVL's own code has wrapped around a layer."""
    field = 'use_backbone_lora' if stem.startswith('vision_model.') else 'use_llm_lora'
    if config.get(field) != adapter.rank:
        raise ConfigError(
            f'config.json: {field}: got {config.get(field)!r}, but {adapter.down} is of rank '
            f'{adapter.rank}; copy the config.json of the checkpoint'
        )
    return float(INTERNVL_ALPHA_BY_RANK)


def _adapter_scale(folder: Path) -> float:
    """Return the scale that an adapter's own config says, for all its layers."""
    settings = read_json(folder / ADAPTER_CONFIG)
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
    text, vision = config['llm_config'], config['vision_config']
    fields = take_fields(text, (*TEXT_FIELDS, 'rope_theta'))
    rope_theta = float(fields.pop('rope_theta'))
    bias = bool(text.get('bias', True))
    ratio = float(config.get('downsample_ratio', 0.5))
    sizes = take_fields(vision, VISION_FIELDS)
    side = sizes['image_size'] // sizes['patch_size']
    return InternVLConfig(
        vision_config={
            **sizes,
            'attention_bias': bool(vision.get('qkv_bias', False)),
            'use_qk_norm': bool(vision.get('qk_normalization', True)),
            'norm_type': vision.get('norm_type', 'rms_norm'),
            'layer_norm_eps': vision.get('layer_norm_eps', 1e-6),
            'hidden_act': vision.get('hidden_act', 'gelu'),
        },
        text_config=LlamaConfig(
            **fields,
            # Dynamic scaling does nothing up to max_position_embeddings, far beyond a sweep.
            rope_parameters={'rope_type': 'default', 'rope_theta': rope_theta},
            attention_bias=bias,
            mlp_bias=False,
            bos_token_id=text.get('bos_token_id', 1),
            eos_token_id=text.get('eos_token_id', 2),
            tie_word_embeddings=False,
        ),
        image_token_id=image_token_id,
        image_seq_length=int(side * ratio) ** 2,
        downsample_ratio=ratio,
        projector_hidden_act='gelu',
        vision_feature_layer=-1,
        vision_feature_select_strategy='default',
        tie_word_embeddings=False,
        **{MOSAIC_KEY: [list(row) for row in MOSAIC]},
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


def _token_id(tokenizer: Any, token: str) -> int:
    token_id = tokenizer.get_vocab().get(token)
    if token_id is None:
        raise ConfigError(
            f'the tokenizer does not know {token!r}; copy the tokenizer files of the checkpoint '
            'again, also tokenizer_config.json'
        )
    return int(token_id)


def _notes(source: Source) -> list[str]:
    num_merged = sum('.lora_A.' in name for name in source.names)
    rows = ' / '.join(' '.join(row) for row in MOSAIC)
    return [
        f'LoRA was merged into {num_merged} layers',
        f'the node will stitch all views into one picture: {rows}; the authors do not say how '
        f'they did: compare with your training data, it is {MOSAIC_KEY} in config.json',
    ]


def _literal(text: str) -> str:
    """Return `text` as a Jinja string."""
    return json.dumps(text, ensure_ascii=False)


CHAT_TEMPLATE = (
    f'{{{{ bos_token }}}}<|im_start|>system\n{{{{ {_literal(SYSTEM_MESSAGE)} }}}}<|im_end|>\n'
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    f"{{{{ {_literal(INSTRUCTION)} ~ '\\n{IMAGE_TOKEN}\\n' }}}}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
"""internvl2_5's conversation with the authors' instruction before the picture."""
