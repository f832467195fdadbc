"""The decoder with pruning, written from its definition: one pass over all tokens, no cache.

All tokens go through all layers. From `prune_layer` on, no token attends to a dropped one. Norms,
projections and feed-forward are the model's own modules. Attention, rotary phases and deepstack
are implemented here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Sequence:
    """A full sequence: embeddings [length, hidden], positions [length] or [3, length]."""

    embeddings: Tensor
    positions: Tensor
    visual: Tensor  # bool [length]
    dropped: Tensor  # bool [length]
    deepstack: Tensor | None = None  # [layers, visual tokens, hidden]


def phases(text_model, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head_dim]; with M-RoPE each frequency uses one of 3 positions."""
    rotary = text_model.rotary_emb
    frequencies = rotary.inv_freq  # float32: phases are float32 in every format of the weights
    if positions.ndim == 1:
        position = positions[:, None].expand(-1, len(frequencies))
    else:
        sections = text_model.config.rope_parameters['mrope_section']
        if text_model.config.rope_parameters.get('mrope_interleaved'):
            axes = [0] * len(frequencies)
            for axis in (1, 2):
                axes[axis : 3 * sections[axis] : 3] = [axis] * sections[axis]
        else:
            axes = [axis for axis, size in enumerate(sections) for _ in range(size)]
        position = torch.stack([positions[axis] for axis in axes], dim=1)
    angles = position.float() * frequencies
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos().double(), angles.sin().double()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + half) of x [length, heads, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def attend(attention, x: Tensor, cos: Tensor, sin: Tensor, allowed: Tensor) -> Tensor:
    """Attention of x [length, hidden] with the mask `allowed`, bool [length, length]."""
    heads = (len(x), -1, attention.head_dim)
    query, key = attention.q_proj(x).view(heads), attention.k_proj(x).view(heads)
    value = attention.v_proj(x).view(heads)
    if hasattr(attention, 'q_norm'):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = torch.einsum('qhd,khd->hqk', query, key) / attention.head_dim**0.5
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1)
    return attention.o_proj(torch.einsum('hqk,khd->qhd', weights, value).flatten(1))


@torch.inference_mode()
def run(model, lm_head, sequence: Sequence, prune_layer: int) -> tuple[Tensor, Tensor]:
    """Logits [length, vocabulary], and the hidden states [length, hidden] before `prune_layer`."""
    cos, sin = phases(model, sequence.positions)
    hidden = sequence.embeddings
    length = len(hidden)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    before = hidden
    for index, layer in enumerate(model.layers):
        allowed = causal
        if index == prune_layer:
            before = hidden
        if index >= prune_layer:
            # A dropped token attends to itself: a softmax over no columns is NaN.
            allowed = causal & (~sequence.dropped[None] | torch.eye(length, dtype=torch.bool))
        normed = layer.input_layernorm(hidden)
        hidden = hidden + attend(layer.self_attn, normed, cos, sin, allowed)
        normed = layer.post_attention_layernorm(hidden)
        hidden = hidden + layer.mlp(normed[None])[0]
        if sequence.deepstack is not None and index < len(sequence.deepstack):
            added = torch.zeros_like(hidden)
            added[sequence.visual] = sequence.deepstack[index]
            hidden = hidden + added
    return lm_head(model.norm(hidden)), before
