"""InternVL's tensors become those of transformers' InternVL with a Llama language model.

LoRA is merged into its layers, InternLM2 becomes Llama, and fused projections are split into
query, key and value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
import re
from typing import Any

from p2d_node.checkpoints.importing.streaming import Convert, keep, Source, Step
from p2d_node.errors import ConfigError
import torch
from torch import Tensor

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
"""Names outside layers, InternVL's to transformers'; `.weight` or `.bias` follows in both."""

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
"""Names of constants that some checkpoints store; the model computes them itself."""

WRAPPERS = re.compile(r'base_model\.model\.|\.base_layer\b|(?<=lora_[AB])\.default\b')
"""The parts of a name that peft adds when it wraps a layer."""

LORA = re.compile(r'(.+)\.lora_([AB])\.weight$')

INTERNVL_ALPHA_BY_RANK = 2
"""InternVL's LoRA: alpha is twice the rank."""


@dataclass(frozen=True, slots=True)
class _Adapter:
    """The LoRA of one layer, which adds `scale` * B A to the weights.

    Attributes:
        down: Stored name of A, [rank, columns].
        up: Stored name of B, [rows, rank].
        rank: The rank of B A.
    """

    down: str
    up: str
    rank: int


def make_steps(
    source: Source, config: Mapping[str, Any], lora_scale: float | None
) -> tuple[list[Step], list[str]]:
    """Plan the conversion of all tensors.

    Args:
        source: The tensors of the checkpoint, and of the adapter if there is one.
        config: The config.json of the checkpoint.
        lora_scale: The factor of the adapter's product B A; None: LoRA is wrapped by InternVL's
            own code, which writes the rank into config.json.

    Returns:
        The conversion steps, and the names of tensors that no step uses.

    Raises:
        ConfigError: The ranks of the LoRA layers differ from config.json, or their shapes do not
            fit their weights.
    """
    weights, adapters, unexpected = _sort_names(source)
    text = config['llm_config']
    groups = partial(
        split_groups, text.get('num_attention_heads', 1), text.get('num_key_value_heads', 1)
    )
    steps: list[Step] = []
    for name, stored in weights.items():
        targets, convert = _targets_of(name, groups)
        if not targets:
            unexpected.append(stored)
            continue
        stem = name.removesuffix('.weight')
        adapter = adapters.pop(stem, None) if stem != name else None
        if adapter is None:
            steps.append(Step((stored,), targets, convert))
            continue
        _check_lora(source, stored, adapter)
        scale = lora_scale if lora_scale is not None else _wrapped_scale(stem, adapter, config)
        merge = partial(_merge_then, convert, scale)
        steps.append(Step((stored, adapter.down, adapter.up), targets, merge))
    unexpected += [n for adapter in adapters.values() for n in (adapter.down, adapter.up)]
    return steps, unexpected


def _sort_names(source: Source) -> tuple[dict[str, str], dict[str, _Adapter], list[str]]:
    """Sort the stored names.

    Returns:
        InternVL's name of each weight to its stored name, the name of each layer with LoRA to its
        adapter, and the stored names that are neither.
    """
    weights: dict[str, str] = {}
    pairs: dict[str, dict[str, str]] = {}
    unexpected: list[str] = []
    for stored in source.names:
        name = WRAPPERS.sub('', stored)
        if name.startswith('model.layers.'):
            name = f'language_model.{name}'  # an adapter that has only the language model
        match = LORA.match(name)
        if match:
            pairs.setdefault(match[1], {})[match[2]] = stored
        elif name in weights:
            unexpected.append(stored)  # the same weight twice, once with the name of a wrapper
        elif not COMPUTED.search(name):
            weights[name] = stored
    unexpected += [stored for pair in pairs.values() if len(pair) == 1 for stored in pair.values()]
    for pair in pairs.values():
        for stored in pair.values():
            if len(source.shape(stored)) != 2:
                raise ConfigError(
                    f'{stored}: got the shape {list(source.shape(stored))}, allowed: a matrix; '
                    'copy the adapter again'
                )
    adapters = {
        layer: _Adapter(pair['A'], pair['B'], source.shape(pair['A'])[0])
        for layer, pair in pairs.items()
        if len(pair) == 2
    }
    return weights, adapters, unexpected


def _targets_of(name: str, groups: Convert) -> tuple[tuple[str, ...], Convert]:
    """Return transformers' names for InternVL's `name` and the conversion; no names: unknown."""
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
    """Split InternViT's fused projection [3 * width, ...] into query, key and value."""
    (fused,) = tensors
    return [third.clone() for third in fused.chunk(3)]


def split_groups(num_heads: int, num_shared: int, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Split InternLM2's fused projection into query, key and value.

    The rows are grouped by key-value head: the query heads of the group, its key, its value.

    Args:
        num_heads: Number of query heads.
        num_shared: Number of key-value heads.
        tensors: One tensor [num_shared * (num_heads / num_shared + 2) * head_dim, ...].
    """
    (fused,) = tensors
    per_group = num_heads // num_shared
    grouped = fused.reshape(num_shared, per_group + 2, -1, *fused.shape[1:])
    query, key, value = grouped[:, :per_group], grouped[:, -2:-1], grouped[:, -1:]
    return [part.flatten(0, 2).clone() for part in (query, key, value)]


def merge_lora(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return `weight` + `scale` * `up` `down`, rounded once to the dtype of `weight`.

    Args:
        weight: [rows, columns].
        down: LoRA's A, [rank, columns].
        up: LoRA's B, [rows, rank].
        scale: Alpha divided by the rank.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    merged = torch.addmm(weight.to(wide), up.to(wide), down.to(wide), alpha=scale)
    return merged.to(weight.dtype)


def _check_lora(source: Source, weight: str, adapter: _Adapter) -> None:
    """Check that LoRA has the shape of its weight, which torch would extend otherwise."""
    names = (weight, adapter.down, adapter.up)
    shapes = [list(source.shape(name)) for name in names]
    rows, columns = shapes[2][0], shapes[1][1]
    if shapes != [[rows, columns], [adapter.rank, columns], [rows, adapter.rank]]:
        got = ', '.join(f'{name} {shape}' for name, shape in zip(names, shapes, strict=True))
        raise ConfigError(
            f'got {got}, allowed: [rows, columns], [rank, columns], [rows, rank]; '
            'copy the checkpoint again'
        )


def _merge_then(convert: Convert, scale: float, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    weight, down, up = tensors
    return convert([merge_lora(weight, down, up, scale)])


def _wrapped_scale(stem: str, adapter: _Adapter, config: Mapping[str, Any]) -> float:
    """Return the scale of a LoRA that InternVL's own code added to a layer."""
    field = 'use_backbone_lora' if stem.startswith('vision_model.') else 'use_llm_lora'
    if config.get(field) != adapter.rank:
        raise ConfigError(
            f'config.json: {field}: got {config.get(field)!r}, but {adapter.down} has rank '
            f'{adapter.rank}; copy the config.json of the checkpoint'
        )
    return float(INTERNVL_ALPHA_BY_RANK)
