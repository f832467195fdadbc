"""Prefill over kept tokens at their original positions, and greedy decoding over a KV cache.

One visual prefix serves all questions of a sweep: it is prefilled once, and each question goes on
from a copy of its cache. Pruned tokens leave gaps in the positions; a token's rotary phase is the
one it had in the full sequence, and decoding continues from the full sequence's length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math
from typing import Any

from p2d_node.records import Cut
import torch
from torch import nn, Tensor
from transformers import DynamicCache


@dataclass(frozen=True, slots=True)
class Embedded:
    """Inputs of the decoder.

    Attributes:
        embeddings: Float [1, length, hidden].
        positions: int64 [1, length], each token's position in the full, unpruned sequence.
        end_position: Length of the full sequence so far: the position of what comes next.
    """

    embeddings: Tensor
    positions: Tensor
    end_position: int


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefilled prefix that questions go on from.

    Attributes:
        cache: Keys and values of the kept tokens; never changed after the prefill.
        length: Number of cached tokens.
        end_position: Position of the token that follows in the full sequence.
    """

    cache: DynamicCache
    length: int
    end_position: int


@dataclass(frozen=True, slots=True)
class Generation:
    """What greedy decoding gave.

    Attributes:
        token_ids: The generated ids, the end token included where the model ended.
        mean_log_probability: Mean natural-log probability of these ids; NaN if there are none.
        cut: Why it ended.
    """

    token_ids: tuple[int, ...]
    mean_log_probability: float
    cut: Cut


class Decoder:
    """A causal language model: its transformer and its output layer.

    Use it from one thread at a time.
    """

    def __init__(self, text_model: nn.Module, lm_head: nn.Module) -> None:
        """Wrap transformers' modules.

        Args:
            text_model: Maps inputs_embeds to hidden states; knows `past_key_values`.
            lm_head: Maps hidden states to logits.
        """
        self._text_model = text_model
        self._lm_head = lm_head

    @torch.inference_mode()
    def prefill(self, inputs: Embedded) -> Prefix:
        """Run the model over the tokens that all questions share."""
        cache = DynamicCache()
        self._forward(inputs, cache, cached=0)
        return Prefix(cache, inputs.embeddings.shape[1], inputs.end_position)

    @torch.inference_mode()
    def prefill_question(self, prefix: Prefix, inputs: Embedded) -> tuple[Prefix, Tensor]:
        """Go on from `prefix` with a question's tokens.

        Returns:
            The longer prefix on a cache of its own, and the logits [1, vocabulary] after it.
        """
        cache = _fork(prefix.cache)
        hidden = self._forward(inputs, cache, cached=prefix.length)
        length = prefix.length + inputs.embeddings.shape[1]
        logits: Tensor = self._lm_head(hidden[:, -1])
        return Prefix(cache, length, inputs.end_position), logits

    @torch.inference_mode()
    def generate_greedy(
        self,
        prompt: Prefix,
        logits: Tensor,
        *,
        embed: Callable[[Tensor], Tensor],
        max_new_tokens: int,
        end_token_ids: Sequence[int],
        must_stop: Callable[[], bool],
    ) -> Generation:
        """Decode greedily after `prompt`, which is used up by it.

        Args:
            prompt: The prefilled prompt.
            logits: [1, vocabulary] after the prompt's last token.
            embed: Maps int64 [1, 1] token ids to their embeddings.
            max_new_tokens: Longest answer.
            end_token_ids: Ids that end an answer.
            must_stop: Asked before every further token; True cuts the answer.

        Returns:
            The generated tokens; reading each id is the one synchronisation per token.
        """
        token_ids: list[int] = []
        log_probability = torch.zeros((), dtype=torch.float32, device=logits.device)
        cut = Cut.LENGTH
        for step in range(max_new_tokens):
            scores = logits[0].float()
            token = scores.argmax()
            log_probability += scores[token] - scores.logsumexp(dim=-1)
            token_ids.append(int(token))
            if token_ids[-1] in end_token_ids:
                cut = Cut.END
                break
            if step + 1 == max_new_tokens:
                break
            if must_stop():
                cut = Cut.DEADLINE
                break
            position = torch.full((1, 1), prompt.end_position + step, device=logits.device)
            inputs = Embedded(embed(token.view(1, 1)), position, prompt.end_position + step + 1)
            hidden = self._forward(inputs, prompt.cache, cached=prompt.length + step)
            logits = self._lm_head(hidden[:, -1])
        mean = float(log_probability) / len(token_ids) if token_ids else math.nan
        return Generation(tuple(token_ids), mean, cut)

    def _forward(self, inputs: Embedded, cache: DynamicCache, *, cached: int) -> Tensor:
        """Append `inputs` to `cache`; returns hidden states [1, length, hidden]."""
        length = cached + inputs.embeddings.shape[1]
        # Without a mask transformers may read gaps in the positions as packed sequences.
        mask = torch.ones((1, length), dtype=torch.int64, device=inputs.embeddings.device)
        output: Any = self._text_model(
            inputs_embeds=inputs.embeddings,
            attention_mask=mask,
            position_ids=inputs.positions,
            past_key_values=cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden


def _fork(cache: DynamicCache) -> DynamicCache:
    fork = DynamicCache()
    for index, layer in enumerate(cache.layers):
        fork.update(layer.keys, layer.values, index)
    return fork


def embed_prefix(
    segments: Sequence[Tensor],
    visual_tokens: Tensor,
    keep_indices: Sequence[Tensor],
    newline: Tensor | None,
) -> Embedded:
    """Lay out text and kept visual tokens at the positions of the full sequence.

    Args:
        segments: Per view the embedded text before it, [length, hidden].
        visual_tokens: [views, tokens, hidden], all of them.
        keep_indices: Per view the kept indices, int64, ascending.
        newline: Embedding [hidden] that closes every view and is always kept; None where the
            family has none.

    Returns:
        The prefix up to and including the last view.
    """
    device = visual_tokens.device
    num_tokens = visual_tokens.shape[1]
    pieces: list[Tensor] = []
    positions: list[Tensor] = []
    start = 0
    for text, tokens, keep in zip(segments, visual_tokens, keep_indices, strict=True):
        pieces += [text.to(tokens.dtype), tokens[keep]]
        positions += [torch.arange(start, start + len(text), device=device)]
        start += len(text)
        positions.append(keep + start)
        start += num_tokens
        if newline is not None:
            pieces.append(newline.view(1, -1).to(tokens.dtype))
            positions.append(torch.full((1,), start, device=device))
            start += 1
    return Embedded(torch.cat(pieces)[None], torch.cat(positions)[None], start)
