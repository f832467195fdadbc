"""Prefill with pruning before any decoder layer, and steps over the KV cache that it leaves.

Layers before `prune_layer` see and cache all tokens, the layers from it on only the kept ones: the
cache is ragged, and each of the two parts has a causal mask and rotary phases of its own. A kept
token's rotary phase is the one it had in the full sequence, and decoding continues from the full
sequence's length.

The shared beginning has a cache of its own. Questions go on in one with room for their answers,
whose buffers are kept from sweep to sweep (`kv_cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from p2d_node.errors import ConfigError
from p2d_node.language_model.fixed_step import FixedStep, FixedSteps, StepGraphs, StepShape
from p2d_node.language_model.kv_cache import CacheRoom, RoomCache
from p2d_node.language_model.layout import Embedded, keep_tokens, stack_rows
import torch
from torch import nn, Tensor
from transformers import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask

SelectTokens = Callable[[Tensor], Sequence[Tensor]]
"""Maps hidden states [views, tokens, hidden] to the kept indices of each view, ascending."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefilled beginning, of one row or of several, that decoding goes on from.

    Attributes:
        cache: Keys and values of every layer.
        prune_layer: The layers from this one on have cached fewer tokens than those before it.
        end_positions: int64 [rows], the position of the token that follows.
        is_real: Bool [rows, columns] over the last cached columns, False where one is padding;
            whatever lies before them is not. None where there is no padding at all.
    """

    cache: Cache
    prune_layer: int
    end_positions: Tensor
    is_real: Tensor | None = None


def most_likely(logits: Tensor) -> Tensor:
    """Return float64 [2, rows]: the ids of the largest logits, and their log probabilities.

    Ids are exact in float64, and both reach the host in one copy.
    """
    scores = logits.float()
    best = scores.max(dim=-1)
    log_probabilities = best.values - scores.logsumexp(dim=-1)
    return torch.stack([best.indices.double(), log_probabilities.double()])


class Decoder:
    """A causal language model: its transformer and its output layer.

    Use it from one thread at a time.

    Attributes:
        num_layers: Number of decoder layers.
        fixed_shapes: Whether answers are decoded in steps of one shape, which a GPU replays as a
            CUDA graph. On a CPU that would only mean attention over empty columns.
    """

    def __init__(
        self,
        text_model: nn.Module,
        lm_head: nn.Module,
        *,
        make_cache: Callable[[], Cache] | None = None,
    ) -> None:
        """Wrap transformers' modules.

        Args:
            text_model: Has `layers`, `norm`, `rotary_emb` and `config` as Llama's has them.
            lm_head: Maps hidden states to logits.
            make_cache: Returns an empty KV cache, of which there is then a new one for every batch
                of questions; None: one with room for the answers, in buffers that are kept.

        Raises:
            ConfigError: A model with sliding-window layers: they count cached tokens, which gaps
                in the positions would falsify.
        """
        model: Any = text_model
        if 'sliding_attention' in (getattr(model.config, 'layer_types', None) or ()):
            raise ConfigError(
                'model: its text model has sliding-window attention, allowed: full attention in '
                'every layer; set use_sliding_window to false if the checkpoint allows it'
            )
        self._model = model
        self._lm_head = lm_head
        self._make_cache = make_cache or DynamicCache
        self._keeps_room = make_cache is None
        self._room = CacheRoom()
        self._graphs = StepGraphs()
        self.num_layers = len(model.layers)
        self.fixed_shapes = next(model.parameters()).is_cuda

    @torch.inference_mode()
    def prefill(
        self, inputs: Embedded, *, select: SelectTokens | None = None, prune_layer: int = 0
    ) -> Prefix:
        """Run the model over the tokens that all questions share.

        Args:
            inputs: The sequence with all visual tokens.
            select: Chooses the kept visual tokens by their hidden states before layer
                `prune_layer`; None keeps all.
            prune_layer: In [0, num_layers); 0 drops tokens before the model.
        """
        if not 0 <= prune_layer < self.num_layers:
            raise ValueError(
                f'prune_layer: got {prune_layer}, allowed: 0 to {self.num_layers - 1}'
            )
        cache = self._make_cache()
        inputs = self._run_sequence(inputs, range(prune_layer), cache)
        if select is not None:
            states = torch.stack([inputs.embeddings[0, view] for view in inputs.views])
            inputs = keep_tokens(inputs, select(states))
        self._run_sequence(inputs, range(prune_layer, self.num_layers), cache)
        ends = torch.tensor([inputs.end_position], device=inputs.embeddings.device)
        return Prefix(cache, prune_layer, ends)

    @torch.inference_mode()
    def extend(
        self, prefix: Prefix, pieces: Sequence[Embedded], *, room: int = 0
    ) -> tuple[Prefix, Tensor]:
        """Go on from `prefix`, which stays as it is, with text: one row per piece.

        Args:
            prefix: Of one row, without padding.
            pieces: The texts, each beginning at the prefix's end position.
            room: Tokens that are to follow at most; 0: the cache grows with each of them.

        Returns:
            The longer prefix on a cache of its own, and the logits [rows, vocabulary] after it.
        """
        rows = stack_rows(pieces)
        num_more = rows.embeddings.shape[1] + room if room else 0
        cache = self._fork(prefix.cache, len(pieces), num_more)
        longer = Prefix(cache, prefix.prune_layer, rows.end_positions, rows.is_real)
        return longer, self._append(longer, rows.embeddings, rows.positions)

    @torch.inference_mode()
    def fork(self, prefix: Prefix, num_rows: int, *, room: int = 0) -> Prefix:
        """Return `num_rows` copies of `prefix`, which is of one row and stays as it is.

        Args:
            prefix: What is copied.
            num_rows: How often.
            room: As in `extend`.
        """
        cache = self._fork(prefix.cache, num_rows, room)
        return replace(prefix, cache=cache, end_positions=prefix.end_positions.expand(num_rows))

    @torch.inference_mode()
    def step(self, prefix: Prefix, embeddings: Tensor) -> tuple[Prefix, Tensor]:
        """Append one token to every row of `prefix`, whose cache is used up by it.

        Args:
            prefix: What comes before.
            embeddings: [rows, 1, hidden] of the tokens.

        Returns:
            The longer prefix and the logits [rows, vocabulary] after it.
        """
        is_real = prefix.is_real
        if is_real is not None:
            is_real = torch.cat([is_real, is_real.new_ones(len(is_real), 1)], dim=1)
        longer = replace(prefix, end_positions=prefix.end_positions + 1, is_real=is_real)
        return longer, self._append(longer, embeddings, prefix.end_positions[:, None])

    @torch.inference_mode()
    def begin_fixed_steps(
        self, prefix: Prefix, embed: Callable[[Tensor], Tensor]
    ) -> FixedSteps | None:
        """Make ready to append tokens to `prefix`, whose cache is used up by it.

        Args:
            prefix: What comes before.
            embed: Maps int64 [rows, 1] token ids to their embeddings; always the model's own, for
                it becomes part of graphs that are kept.

        Returns:
            None where steps do not have one shape: they are off, or `prefix` has no room.
        """
        cache: Any = prefix.cache
        if not self.fixed_shapes or not isinstance(cache, RoomCache):
            return None
        parts = self._parts(prefix.prune_layer)
        of_parts = [cache.layers[part.start] for part in parts]
        shape = StepShape(
            num_rows=len(prefix.end_positions),
            capacities=tuple(layer.capacity for layer in of_parts),
            first_layers=tuple(part.start for part in parts),
        )
        first = of_parts[0]
        step = self._graphs.find(shape, cache.version, dtype=first.dtype, device=first.device)
        step.load(prefix.end_positions, [layer.length for layer in of_parts], prefix.is_real)
        num_left = min(layer.capacity - layer.length for layer in of_parts)
        for part, slot in zip(parts, step.slots, strict=True):
            for index in part:
                cache.layers[index].fix_shape(slot)
        compute = partial(self._compute_step, step, cache, parts, embed)
        return FixedSteps(self._graphs, step, compute, num_left)

    def _compute_step(
        self,
        step: FixedStep,
        cache: Cache,
        parts: Sequence[range],
        embed: Callable[[Tensor], Tensor],
    ) -> None:
        """Append the step's tokens; no shape depends on how many were cached before."""
        step.show_token()
        hidden = embed(step.tokens)
        rotary = self._model.rotary_emb(hidden, step.positions)
        for layers, mask in zip(parts, step.masks, strict=True):
            for index in layers:
                hidden = self._run_layer(index, hidden, mask, rotary, cache)
        step.move_on(most_likely(self._lm_head(self._model.norm(hidden[:, -1]))))

    def release(self) -> None:
        """Free what is kept from sweep to sweep; the next sweep allocates it again."""
        self._graphs.release()
        self._room.release()

    def _parts(self, prune_layer: int) -> list[range]:
        """Return the layers in parts that have cached the same tokens."""
        parts = (range(prune_layer), range(prune_layer, self.num_layers))
        return [part for part in parts if part]

    def _append(self, prefix: Prefix, hidden: Tensor, positions: Tensor) -> Tensor:
        """Append tokens to `prefix`, whose other fields already count them; returns logits."""
        for layers in self._parts(prefix.prune_layer):
            hidden = self._run(hidden, positions, layers, prefix.cache, is_real=prefix.is_real)
        logits: Tensor = self._lm_head(self._model.norm(hidden[:, -1]))
        return logits

    def _run_sequence(self, inputs: Embedded, layers: range, cache: Cache) -> Embedded:
        hidden = self._run(
            inputs.embeddings,
            inputs.positions,
            layers,
            cache,
            deepstack=inputs.deepstack,
            visual_columns=inputs.visual_columns if inputs.deepstack is not None else None,
        )
        return replace(inputs, embeddings=hidden)

    def _run(
        self,
        hidden: Tensor,
        positions: Tensor,
        layers: range,
        cache: Cache,
        *,
        is_real: Tensor | None = None,
        deepstack: Tensor | None = None,
        visual_columns: Tensor | None = None,
    ) -> Tensor:
        """Append tokens to the cache of `layers`, all of which have cached the same tokens.

        Args:
            hidden: [rows, length, hidden] before the first of the layers.
            positions: int64 [rows, length] or [3, rows, length].
            layers: Which layers run; may be empty.
            cache: Keys and values so far.
            is_real: As in `Prefix`, these tokens included.
            deepstack: As in `Embedded`.
            visual_columns: Where the deepstack features go.

        Returns:
            [rows, length, hidden] after the last of the layers.
        """
        if not layers:
            return hidden
        mask = self._mask(hidden, layers.start, cache, is_real)
        rotary = self._model.rotary_emb(hidden, positions)
        for index in layers:
            hidden = self._run_layer(index, hidden, mask, rotary, cache)
            if deepstack is not None and index < len(deepstack):
                hidden[:, visual_columns] += deepstack[index]
        return hidden

    def _run_layer(
        self, index: int, hidden: Tensor, mask: Any, rotary: Any, cache: Cache
    ) -> Tensor:
        # Positions go in through the rotary phases only: attention would read their gaps as
        # borders between packed sequences.
        output: Tensor = self._model.layers[index](
            hidden,
            attention_mask=mask,
            position_embeddings=rotary,
            position_ids=None,
            past_key_values=cache,
            use_cache=True,
        )
        return output

    def _mask(self, hidden: Tensor, layer: int, cache: Cache, is_real: Tensor | None) -> Any:
        if is_real is not None:
            num_before = cache.get_seq_length(layer) + hidden.shape[1] - is_real.shape[1]
            is_real = torch.cat([is_real.new_ones(len(is_real), num_before), is_real], dim=1)
        return create_causal_mask(
            config=self._model.config,
            inputs_embeds=hidden,
            attention_mask=is_real,
            past_key_values=cache,
            layer_idx=layer,
        )

    def _fork(self, cache: Cache, num_rows: int, room: int) -> Cache:
        """Return a cache with `num_rows` copies of the one row in `cache`."""
        if room and self._keeps_room:
            return self._room.lend(cache, num_rows, room)
        fork = self._make_cache()
        for index, layer in enumerate(cache.layers):
            length = int(cache.get_seq_length(index))
            keys, values = layer.keys[:, :, :length], layer.values[:, :, :length]
            shape = (num_rows, -1, -1, -1)
            fork.update(keys.expand(shape), values.expand(shape), index)
        return fork
