"""The language model over one visual prefix and many questions in one forward pass.

Each question gets what transformers' Qwen2 computes for it alone: the prefix is causal, a question
sees the prefix and itself, and the positions of every question start at the end of the prefix.
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
    """Hidden states of the questions, and what the auxiliary losses need.

    Attributes:
        asked: Float [sweeps, tokens, hidden], after the final normalisation.
        between: Layer number to the hidden states [sweeps, tokens, hidden] after that layer.
        attention: Layer number to attention logits [sweeps, heads, questions, prefix].
        last_attention: Attention logits of the last layer [sweeps, heads, questions, prefix +
            tokens]; -inf for tokens that a question does not see.
    """

    asked: Tensor
    between: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)
    last_attention: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """Drops prefix tokens before a layer.

    Attributes:
        layer: Layer before which they are dropped; 0 drops them from the input.
        choose: Maps hidden states of the prefix [1, prefix, hidden] to the places to keep, int64,
            ascending.
    """

    layer: int
    choose: Callable[[Tensor], Tensor]


class _Row:
    """Prefix and questions in one row of hidden states, between two layers.

    Attributes:
        hidden: Float [sweeps, prefix + tokens, hidden].
        split: Length of the prefix.
        rotary: Cosine and sine of the positions.
        seen: Which tokens a question token sees, bool [sweeps, 1, tokens, prefix + tokens].
    """

    def __init__(
        self, text_model: Any, prefix: Tensor, asked: Tensor, batch: dict[str, Tensor]
    ) -> None:
        sweeps, self.split = prefix.shape[:2]
        self.hidden = torch.cat([prefix, asked], dim=1)
        start = torch.arange(self.split, device=prefix.device).expand(sweeps, -1)
        self._positions = torch.cat([start, batch['positions'] + self.split], dim=1)
        self._mask = _question_mask(batch['owner'])
        self._rotary_emb = text_model.rotary_emb
        self._update()

    def _update(self) -> None:
        self.rotary = self._rotary_emb(self.hidden, self._positions)
        self.seen = functional.pad(self._mask, (self.split, 0), value=True)

    @property
    def prefix(self) -> Tensor:
        """Hidden states of the prefix."""
        return self.hidden[:, : self.split]

    @property
    def asked(self) -> Tensor:
        """Hidden states of the questions."""
        return self.hidden[:, self.split :]

    def keep_prefix(self, places: Tensor) -> None:
        """Drop all prefix tokens but those at `places`; all tokens keep their positions."""
        rest = torch.arange(self.split, self.hidden.shape[1], device=places.device)
        kept = torch.cat([places, rest])
        self.hidden, self._positions = self.hidden[:, kept], self._positions[:, kept]
        self.split = len(places)
        self._update()


def _question_mask(owner: Tensor) -> Tensor:
    """Return which question tokens see which, bool [sweeps, 1, tokens, tokens]."""
    same = owner[:, None, :, None] == owner[:, None, None, :]
    length = owner.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=owner.device).tril()
    return same & causal


def run_packed(
    text_model: Any,
    prefix: Tensor,
    asked: Tensor,
    batch: dict[str, Tensor],
    *,
    attention_layers: Sequence[int],
    keep_layers: Sequence[int],
    pruning: Pruning | None = None,
) -> Hidden:
    """Run all layers.

    Args:
        text_model: transformers' `Qwen2Model`.
        prefix: Embedded prefix, float [sweeps, prefix, hidden].
        asked: Embedded questions and answers, float [sweeps, tokens, hidden].
        batch: The packed questions, see `packing.Packed`.
        attention_layers: Layers whose attention goes into `Hidden.attention`.
        keep_layers: Layers whose output goes into `Hidden.between`.
        pruning: Drops prefix tokens; for one sweep at a time.
    """
    row = _Row(text_model, prefix, asked, batch)
    result = Hidden(asked=asked)
    answer_at = batch['answer_at']
    for number, layer in enumerate(text_model.layers):
        if pruning is not None and number == pruning.layer:
            row.keep_prefix(pruning.choose(row.prefix))
        query, key, value = _project(layer, row)
        if number in attention_layers:
            result.attention[number] = _attention_logits(
                query[:, :, row.split :], key[:, :, : row.split], answer_at
            )
        if number + 1 == len(text_model.layers):
            result.last_attention = _last_attention(
                query[:, :, row.split :], key, answer_at, row.seen
            )
        mixed = _attend(query, key, value, row.split, row.seen)
        hidden = row.hidden + layer.self_attn.o_proj(mixed)
        row.hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if number in keep_layers:
            result.between[number] = row.asked
    result.asked = text_model.norm(row.asked)
    return result


def _project(layer: Any, row: _Row) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value, each [sweeps, heads, prefix + tokens, head_dim]."""
    attention, hidden = layer.self_attn, layer.input_layernorm(row.hidden)
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    query = attention.q_proj(hidden).view(shape).transpose(1, 2)
    key = attention.k_proj(hidden).view(shape).transpose(1, 2)
    value = attention.v_proj(hidden).view(shape).transpose(1, 2)
    cos, sin = row.rotary
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


def _attention_logits(query: Tensor, key: Tensor, answer_at: Tensor) -> Tensor:
    """Return the attention logits of the answers, float32 [sweeps, heads, questions, keys]."""
    index = answer_at[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
    chosen = query.gather(2, index)
    logits: Tensor = (chosen @ key.transpose(2, 3)).float() * query.shape[3] ** -0.5
    return logits


def _last_attention(query: Tensor, key: Tensor, answer_at: Tensor, seen: Tensor) -> Tensor:
    logits = _attention_logits(query, key, answer_at)
    rows = answer_at[:, None, :, None].expand(-1, 1, -1, seen.shape[3])
    return logits.masked_fill(~seen.gather(2, rows), -torch.inf)


def lay_out_prefix(
    model: Any, segments: Sequence[Sequence[int]], preamble: Sequence[int], visual_tokens: Tensor
) -> Tensor:
    """Return the embedded prefix with all visual tokens, float [sweeps, prefix, hidden].

    It ends with the preamble, the tokens that every question begins with.

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
    """Return the places of the visual tokens in the prefix, int64 [views * tokens]."""
    places, start = [], 0
    for ids in segments:
        start += len(ids)
        places.append(torch.arange(start, start + num_tokens, device=device))
        start += num_tokens + 1
    return torch.cat(places)
