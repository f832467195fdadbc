"""What the published models compute, written from their definitions on the published weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square normalisation."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def layer_norm(x: Tensor, weights: dict, name: str, eps: float = 1e-6) -> Tensor:
    """Mean and variance normalisation."""
    return functional.layer_norm(
        x, x.shape[-1:], weights[f'{name}.weight'], weights[f'{name}.bias'], eps
    )


def linear(x: Tensor, weights: dict, name: str) -> Tensor:
    """A linear layer, with LoRA beside it where there is one."""
    base = f'{name}.base_layer' if f'{name}.base_layer.weight' in weights else name
    y = x @ weights[f'{base}.weight'].T
    if f'{base}.bias' in weights:
        y = y + weights[f'{base}.bias']
    if base != name:
        down, up = (weights[f'{name}.lora_{side}.default.weight'] for side in 'AB')
        y = y + 2.0 * (x @ down.T @ up.T)  # alpha is twice the rank
    return y


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """Softmax attention of [..., length, heads, head_dim], heads side by side in the result."""
    scores = torch.einsum('...qhd,...khd->...hqk', query, key) / math.sqrt(query.shape[-1])
    if causal:
        length = scores.shape[-1]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return torch.einsum('...hqk,...khd->...qhd', scores.softmax(-1), value).flatten(-2)


def patches(pixel_values: Tensor, weights: dict, name: str) -> Tensor:
    """Cut pictures [views, 3, side, side] into patches and embed them, row by row."""
    kernel = weights[f'{name}.weight']
    size = kernel.shape[-1]
    cut = pixel_values.unfold(2, size, size).unfold(3, size, size)
    flat = cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return flat @ kernel.flatten(1).T + weights[f'{name}.bias']


def siglip_features(pixel_values: Tensor, weights: dict, *, layers: int, heads: int) -> Tensor:
    """SigLIP's features [views, patches, width] after its last layer, not normalised."""
    tower = 'model.vision_tower.vision_tower.vision_model'
    x = patches(pixel_values, weights, f'{tower}.embeddings.patch_embedding')
    x = x + weights[f'{tower}.embeddings.position_embedding.weight']
    for number in range(layers):
        layer = f'{tower}.encoder.layers.{number}'
        normed = layer_norm(x, weights, f'{layer}.layer_norm1')
        query, key, value = (
            linear(normed, weights, f'{layer}.self_attn.{name}_proj').unflatten(-1, (heads, -1))
            for name in 'qkv'
        )
        x = x + linear(attend(query, key, value), weights, f'{layer}.self_attn.out_proj')
        normed = layer_norm(x, weights, f'{layer}.layer_norm2')
        inner = functional.gelu(linear(normed, weights, f'{layer}.mlp.fc1'), approximate='tanh')
        x = x + linear(inner, weights, f'{layer}.mlp.fc2')
    return x


def drivemm_views(pixel_values: Tensor, weights: dict, *, layers: int, heads: int) -> Tensor:
    """A view's tokens as DriveMM's language model gets them, without the newline."""
    x = siglip_features(pixel_values, weights, layers=layers, heads=heads)
    x = functional.gelu(linear(x, weights, 'model.mm_projector.0'))
    return linear(x, weights, 'model.mm_projector.2')


def llama_3_frequencies(head_dim: int, config: dict) -> Tensor:
    """Rotary frequencies with Llama 3.1's scaling: long waves slowed, short ones kept."""
    rope = config['rope_scaling']
    base = config['rope_theta'] ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    turns = rope['original_max_position_embeddings'] * base / (2 * math.pi)
    low, high = rope['low_freq_factor'], rope['high_freq_factor']
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return base * (share + (1 - share) / rope['factor'])


def rotate(x: Tensor, frequencies: Tensor, positions: Tensor | None = None) -> Tensor:
    """Turn the pairs (i, i + half) of [length, heads, head_dim] by position times frequency."""
    positions = torch.arange(len(x)) if positions is None else positions
    angles = positions.double()[:, None, None] * frequencies
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def llama_logits(x: Tensor, weights: dict, config: dict) -> Tensor:
    """Logits [length, vocabulary] of embeddings [length, hidden], Llama's names."""
    heads, shared = config['num_attention_heads'], config['num_key_value_heads']
    frequencies = llama_3_frequencies(config['hidden_size'] // heads, config)
    eps = config['rms_norm_eps']
    for number in range(config['num_hidden_layers']):
        layer = f'model.layers.{number}'
        normed = rms_norm(x, weights[f'{layer}.input_layernorm.weight'], eps)
        query = linear(normed, weights, f'{layer}.self_attn.q_proj').unflatten(-1, (heads, -1))
        key = linear(normed, weights, f'{layer}.self_attn.k_proj').unflatten(-1, (shared, -1))
        value = linear(normed, weights, f'{layer}.self_attn.v_proj').unflatten(-1, (shared, -1))
        query, key = rotate(query, frequencies), rotate(key, frequencies)
        key, value = (t.repeat_interleave(heads // shared, dim=1) for t in (key, value))
        mixed = attend(query, key, value, causal=True)
        x = x + linear(mixed, weights, f'{layer}.self_attn.o_proj')
        normed = rms_norm(x, weights[f'{layer}.post_attention_layernorm.weight'], eps)
        gate = functional.silu(linear(normed, weights, f'{layer}.mlp.gate_proj'))
        inner = gate * linear(normed, weights, f'{layer}.mlp.up_proj')
        x = x + linear(inner, weights, f'{layer}.mlp.down_proj')
    return linear(rms_norm(x, weights['model.norm.weight'], eps), weights, 'lm_head')


def intern_vit_features(pixel_values: Tensor, weights: dict, vision: dict) -> Tensor:
    """InternViT's features [views, patches, width], the class token dropped."""
    tower = 'vision_model.base_model.model'
    x = patches(pixel_values, weights, f'{tower}.embeddings.patch_embedding')
    first = weights[f'{tower}.embeddings.class_embedding'].expand(len(x), -1, -1)
    x = torch.cat([first, x], dim=1) + weights[f'{tower}.embeddings.position_embedding']
    for number in range(vision['num_hidden_layers']):
        layer = f'{tower}.encoder.layers.{number}'
        normed = layer_norm(x, weights, f'{layer}.norm1')
        fused = linear(normed, weights, f'{layer}.attn.qkv')
        query, key, value = fused.unflatten(-1, (3, vision['num_attention_heads'], -1)).unbind(2)
        mixed = linear(attend(query, key, value), weights, f'{layer}.attn.proj')
        x = x + weights[f'{layer}.ls1'] * mixed
        normed = layer_norm(x, weights, f'{layer}.norm2')
        inner = functional.gelu(linear(normed, weights, f'{layer}.mlp.fc1'))
        x = x + weights[f'{layer}.ls2'] * linear(inner, weights, f'{layer}.mlp.fc2')
    return x[:, 1:]


def drivelmm_o1_views(pixel_values: Tensor, weights: dict, config: dict) -> Tensor:
    """A picture's tokens as DriveLMM-o1's language model gets them."""
    x = intern_vit_features(pixel_values, weights, config['vision_config'])
    side = round(x.shape[1] ** 0.5)
    x = x.unflatten(1, (side, side))
    corners = [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    x = layer_norm(torch.cat(corners, dim=-1).flatten(1, 2), weights, 'mlp1.0', eps=1e-5)
    x = functional.gelu(linear(x, weights, 'mlp1.1'))
    return linear(x, weights, 'mlp1.3')


def internlm2_logits(
    x: Tensor, weights: dict, text: dict, positions: Tensor | None = None
) -> Tensor:
    """Logits [length, vocabulary] of embeddings [length, hidden], InternLM2's names."""
    model = 'language_model.base_model.model'
    heads, shared = text['num_attention_heads'], text['num_key_value_heads']
    group, head_dim = heads // shared, text['hidden_size'] // heads
    frequencies = text['rope_theta'] ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    eps = text['rms_norm_eps']
    for number in range(text['num_hidden_layers']):
        layer = f'{model}.model.layers.{number}'
        normed = rms_norm(x, weights[f'{layer}.attention_norm.weight'], eps)
        fused = linear(normed, weights, f'{layer}.attention.wqkv')
        fused = fused.unflatten(-1, (shared, group + 2, head_dim))
        query, key, value = (
            fused[..., :group, :].flatten(1, 2),
            fused[..., -2, :],
            fused[..., -1, :],
        )
        query, key = (rotate(t, frequencies, positions) for t in (query, key))
        key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
        mixed = attend(query, key, value, causal=True)
        x = x + linear(mixed, weights, f'{layer}.attention.wo')
        normed = rms_norm(x, weights[f'{layer}.ffn_norm.weight'], eps)
        gate = functional.silu(linear(normed, weights, f'{layer}.feed_forward.w1'))
        inner = gate * linear(normed, weights, f'{layer}.feed_forward.w3')
        x = x + linear(inner, weights, f'{layer}.feed_forward.w2')
    return linear(
        rms_norm(x, weights[f'{model}.model.norm.weight'], eps), weights, f'{model}.output'
    )
