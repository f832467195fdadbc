"""The language model over one visual prefix and many questions at once.

It computes what transformers' Qwen2 computes for each question alone: the prefix is causal, a
question sees the prefix and itself, and the rotary positions start again with every question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb


@dataclass(slots=True, kw_only=True)
class Hidden:
    """What comes out, and what auxiliary losses look at.

    Attributes:
        asked: Float [sweeps, tokens, hidden], after the last normalisation.
        between: Layer number to the hidden states [sweeps, tokens, hidden] after that layer.
        looks: Layer number to attention logits [sweeps, heads, questions, prefix].
        last_look: The last layer's, [sweeps, heads, questions, prefix + tokens], -inf where a
            question sees nothing.
    """

    asked: Tensor
    between: dict[int, Tensor] = field(default_factory=dict)
    looks: dict[int, Tensor] = field(default_factory=dict)
    last_look: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """Drops prefix tokens before a layer.

    Attributes:
        layer: Before this layer; 0 drops them from the input.
        choose: Maps prefix hidden states [1, prefix, hidden] to the places that stay, ascending.
    """

    layer: int
    choose: Callable[[Tensor], Tensor]


def question_mask(owner: Tensor) -> Tensor:
    """Return which question tokens see which, bool [sweeps, 1, tokens, tokens]."""
    same = owner[:, None, :, None] == owner[:, None, None, :]
    length = owner.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=owner.device).tril()
    return same & causal


def run_packed(
    text_model: Any,
    prefix: Tensor,
    prefix_positions: Tensor,
    asked: Tensor,
    asked_positions: Tensor,
    *,
    mask: Tensor,
    looks_at: Sequence[int] = (),
    answer_at: Tensor | None = None,
    keep: Sequence[int] = (),
    pruning: Pruning | None = None,
) -> Hidden:
    """Run all layers.

    Args:
        text_model: transformers' `Qwen2Model`.
        prefix: Embedded prefix, float [sweeps, prefix, hidden].
        prefix_positions: int64 [sweeps, prefix].
        asked: Embedded questions and answers, float [sweeps, tokens, hidden].
        asked_positions: int64 [sweeps, tokens].
        mask: From `question_mask`.
        looks_at: Layers whose attention from `answer_at` is wanted.
        answer_at: int64 [sweeps, questions], places in `asked`.
        keep: Layers whose output is wanted.
        pruning: Drops prefix tokens; they keep their positions. For one sweep at a time.
    """
    split = prefix.shape[1]
    hidden = torch.cat([prefix, asked], dim=1)
    positions = torch.cat([prefix_positions, asked_positions], dim=1)
    rotary = text_model.rotary_emb(hidden, positions)
    seen = functional.pad(mask, (split, 0), value=True)
    result = Hidden(asked=asked)
    for number, layer in enumerate(text_model.layers):
        if pruning is not None and number == pruning.layer:
            stay = pruning.choose(hidden[:, :split])
            places = torch.cat([stay, torch.arange(split, hidden.shape[1], device=stay.device)])
            hidden, positions, split = hidden[:, places], positions[:, places], len(stay)
            rotary = text_model.rotary_emb(hidden, positions)
            seen = functional.pad(mask, (split, 0), value=True)
        residual = hidden
        attention = layer.self_attn
        query, key, value = _project(attention, layer.input_layernorm(hidden), rotary)
        if number in looks_at and answer_at is not None:
            result.looks[number] = _look(query[:, :, split:], key[:, :, :split], answer_at)
        if number + 1 == len(text_model.layers) and answer_at is not None:
            logits = _look(query[:, :, split:], key, answer_at)
            rows = answer_at[:, None, :, None].expand(-1, 1, -1, seen.shape[3])
            result.last_look = logits.masked_fill(~seen.gather(2, rows), -torch.inf)
        mixed = _attend(query, key, value, split, seen)
        hidden = residual + attention.o_proj(mixed)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if number in keep:
            result.between[number] = hidden[:, split:]
    result.asked = text_model.norm(hidden[:, split:])
    return result


def _project(
    attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    query = attention.q_proj(hidden).view(shape).transpose(1, 2)
    key = attention.k_proj(hidden).view(shape).transpose(1, 2)
    value = attention.v_proj(hidden).view(shape).transpose(1, 2)
    cos, sin = rotary
    query, key = apply_rotary_pos_emb(query, key, cos.to(query.dtype), sin.to(query.dtype))
    return query, key, value


def _attend(query: Tensor, key: Tensor, value: Tensor, split: int, seen: Tensor) -> Tensor:
    """Attend causally within the prefix, and from the questions to prefix and themselves."""
    seeing, asking = torch.split(query, [split, query.shape[2] - split], dim=2)
    first = functional.scaled_dot_product_attention(
        seeing, key[:, :, :split], value[:, :, :split], is_causal=True
    )
    second = functional.scaled_dot_product_attention(asking, key, value, attn_mask=seen)
    mixed = torch.cat([first, second], dim=2).transpose(1, 2)
    return mixed.reshape(*mixed.shape[:2], -1)


def _look(query: Tensor, key: Tensor, answer_at: Tensor) -> Tensor:
    index = answer_at[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
    chosen = query.gather(2, index)
    logits: Tensor = (chosen @ key.transpose(2, 3)).float() * query.shape[3] ** -0.5
    return logits


def lay_out_prefix(
    model: Any, segments: Sequence[Sequence[int]], preamble: Sequence[int], visual_tokens: Tensor
) -> Tensor:
    """Return the embedded prefix [sweeps, prefix, hidden] with all visual tokens.

    It is what `layout.lay_out_views` lays out, and the preamble that every question begins with.

    Args:
        model: transformers' `LlavaOnevisionForConditionalGeneration`.
        segments: Token ids before each view.
        preamble: Token ids after the last view.
        visual_tokens: Float [sweeps, views, tokens, hidden].
    """
    sweeps, views = visual_tokens.shape[:2]
    device = visual_tokens.device
    embed = model.get_input_embeddings()
    newline = model.model.image_newline.to(visual_tokens.dtype).expand(sweeps, 1, -1)
    pieces = []
    for view in range(views):
        ids = torch.tensor(segments[view], device=device)
        pieces += [embed(ids).expand(sweeps, -1, -1), visual_tokens[:, view], newline]
    pieces.append(embed(torch.tensor(preamble, device=device)).expand(sweeps, -1, -1))
    return torch.cat([piece.to(visual_tokens.dtype) for piece in pieces], dim=1)


def patch_places(
    segments: Sequence[Sequence[int]], num_tokens: int, device: torch.device
) -> Tensor:
    """Return where the visual tokens lie in the prefix, int64 [views * tokens]."""
    places, start = [], 0
    for ids in segments:
        start += len(ids)
        places.append(torch.arange(start, start + num_tokens, device=device))
        start += num_tokens + 1
    return torch.cat(places)
