"""A loaded model comes in; its decoder layers are replaced by ones that need fewer calls.

On a CPU a decoding step of a small model spends a third of its time between matrix products. A
fused layer has one product for queries, keys and values and one for the gate and up projections.
It applies the rotary phases to queries and keys at once, and attention does not copy the cache.
What it computes is the same. On a GPU captured graphs make the calls, so layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn, Tensor
from torch.nn import functional

LAYER_CLASSES = (
    'llama.modeling_llama.LlamaDecoderLayer',
    'qwen2.modeling_qwen2.Qwen2DecoderLayer',
    'qwen2_vl.modeling_qwen2_vl.Qwen2VLDecoderLayer',
    'qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VLDecoderLayer',
    'qwen3.modeling_qwen3.Qwen3DecoderLayer',
    'qwen3_vl.modeling_qwen3_vl.Qwen3VLTextDecoderLayer',
)
"""Layers of Llama's form: two residual branches, gated activation, norms before the branches.
By name, as importing all of them takes seconds."""


class FusedLayer(nn.Module):
    """A decoder layer of Llama's form; takes the arguments of transformers' layers."""

    def __init__(self, layer: Any) -> None:
        """Copy the projections of `layer`, whose own may be freed then; share its norms."""
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self._index = int(attention.layer_idx)
        self._head_size = int(attention.head_dim)
        self._num_queries = attention.q_proj.out_features // self._head_size
        self._num_keys = attention.k_proj.out_features // self._head_size
        self._scale = float(attention.scaling)
        self.attention_norm = layer.input_layernorm
        self.qkv_proj = fuse_linear([attention.q_proj, attention.k_proj, attention.v_proj])
        self.q_norm = getattr(attention, 'q_norm', None)
        self.k_norm = getattr(attention, 'k_norm', None)
        self.o_proj = attention.o_proj
        self.mlp_norm = layer.post_attention_layernorm
        self.gate_up_proj = fuse_linear([mlp.gate_proj, mlp.up_proj])
        self.activation = mlp.act_fn
        self.down_proj = mlp.down_proj

    def forward(
        self,
        hidden: Tensor,
        *,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Any,
        **_: Any,
    ) -> Tensor:
        """Run the layer.

        Args:
            hidden: Float [rows, length, hidden].
            attention_mask: What attention adds, or bool, [rows or 1, 1, length, columns]; None:
                a token sees those before it.
            position_embeddings: Cosines and sines of the rotary phases, [rows, length, head_dim].
            past_key_values: transformers' cache; keys and values are appended.

        Returns:
            Float [rows, length, hidden].
        """
        queries, keys, values = self._project(self.attention_norm(hidden), *position_embeddings)
        keys, values = past_key_values.update(keys, values, self._index)
        attended = _attend(queries, keys, values, attention_mask, self._scale)
        hidden = hidden + self.o_proj(attended.transpose(1, 2).flatten(2))
        gate, up = self.gate_up_proj(self.mlp_norm(hidden)).chunk(2, dim=-1)
        output: Tensor = hidden + self.down_proj(self.activation(gate) * up)
        return output

    def _project(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries and keys, and values, each [rows, heads, length, head_dim]."""
        heads = self.qkv_proj(hidden).unflatten(-1, (-1, self._head_size))
        num_rotated = self._num_queries + self._num_keys
        rotated, values = heads[:, :, :num_rotated], heads[:, :, num_rotated:]
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = torch.split(rotated, [self._num_queries, self._num_keys], dim=2)
            rotated = torch.cat([self.q_norm(queries), self.k_norm(keys)], dim=2)
        rotated = rotate(rotated.transpose(1, 2), cos[:, None], sin[:, None])
        queries, keys = torch.split(rotated, [self._num_queries, self._num_keys], dim=1)
        return queries, keys, values.transpose(1, 2)


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Return the attended values, of the shape of `queries` [rows, heads, length, head_dim].

    Query heads that share a key head become further queries of that head: repeating keys and
    values would copy the cache at every step.
    """
    rows, num_heads, length, head_size = queries.shape
    num_shared = num_heads // keys.shape[1]
    if mask is None:
        return functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=length > 1, scale=scale, enable_gqa=num_shared > 1
        )
    if num_shared > 1:
        queries = queries.reshape(rows, -1, num_shared * length, head_size)
        if length > 1:
            mask = mask.repeat(1, 1, num_shared, 1)
    attended = functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=scale
    )
    return attended.reshape(rows, num_heads, length, head_size)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary phases to the last dimension, whose halves are the parts of the pairs."""
    half = states.shape[-1] // 2
    turned = torch.cat([-states[..., half:], states[..., :half]], dim=-1)
    return states * cos + turned * sin


def fuse_linear(layers: Sequence[nn.Linear]) -> nn.Linear:
    """Return one linear layer whose output is that of all `layers`, one after the other."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    fused = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(biases), device='meta')
    fused.weight = nn.Parameter(weight, requires_grad=False)
    if biases:
        fused.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return fused


@torch.no_grad()
def fuse_decoder_layers(layers: nn.ModuleList) -> None:
    """Replace the layers that can be fused, one by one, so that memory grows by one at most.

    Left as they are: layers on a GPU, of other classes, quantised, or with other attention than
    torch's `scaled_dot_product_attention`.
    """
    for index, layer in enumerate(layers):
        if _can_fuse(layer):
            layers[index] = FusedLayer(layer)


def _can_fuse(layer: Any) -> bool:
    name = f'{type(layer).__module__}.{type(layer).__qualname__}'
    if name.removeprefix('transformers.models.') not in LAYER_CLASSES:
        return False
    if layer.self_attn.config._attn_implementation != 'sdpa':
        return False
    linear = [part for part in layer.modules() if isinstance(part, nn.Linear)]
    return all(
        type(part) is nn.Linear
        and type(part.weight) is nn.Parameter
        and part.weight.device.type == 'cpu'
        for part in linear
    )
