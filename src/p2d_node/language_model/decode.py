"""The decoder: prefill in two halves, between which tokens are dropped, and decode steps.

Layers before `prune_layer` see and cache all tokens; the layers from it on see and cache only the
kept ones. The cache is ragged: each of the two groups of layers has its own causal mask and rotary
phases. A kept token's rotary phase is that of its position in the full sequence, and decoding
continues from the length of the full sequence.

The shared prefix has a cache of its own. Questions continue in a second cache with capacity for
their answers, whose buffers are reused from sweep to sweep (`kv_cache`). Drafted tokens are cached
too; those that were wrong are overwritten (`decode_loop`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from p2d_node.errors import ConfigError
from p2d_node.language_model.decode_loop import (
    BatchShape,
    BatchState,
    DecodeLoop,
    Pass,
    StateCache,
)
from p2d_node.language_model.drafts import PassCosts
from p2d_node.language_model.input_sequence import (
    drop_tokens,
    InputSequence,
    pad_to_batch,
    PaddedBatch,
)
from p2d_node.language_model.kv_cache import CachePool, StaticCache
from p2d_node.language_model.prefix import PausedPrefill, Prefix
import torch
from torch import nn, Tensor
from transformers import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask

PASS_COSTS_CPU, PASS_COSTS_GPU = (1.05, 0.05), (1.0, 0.005)
"""`PassCosts.several` and `per_token`. A GPU computes hundreds of tokens in the time that it needs
to read the weights."""


def most_likely(logits: Tensor) -> Tensor:
    """Return the ids of the largest logits and their log probabilities, float64 [2, ...].

    float64 represents ids exactly, so that both reach the host in one copy.

    Args:
        logits: [..., vocabulary].
    """
    scores = logits.float()
    best = scores.max(dim=-1)
    log_probabilities = best.values - scores.logsumexp(dim=-1)
    return torch.stack([best.indices.double(), log_probabilities.double()])


def _extend_real(is_real: Tensor | None, count: int) -> Tensor | None:
    """Return `is_real` of a batch to which `count` tokens per row are appended."""
    if is_real is None:
        return None
    return torch.cat([is_real, is_real.new_ones(len(is_real), count)], dim=1)


class Decoder:
    """A causal language model: decoder layers and output layer.

    Use it from one thread at a time.

    Attributes:
        num_layers: Number of decoder layers.
        static_shapes: Whether answers are decoded with static shapes, which a GPU replays as
            CUDA graphs. On a CPU that would only mean attention over empty columns.
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
            make_cache: Returns an empty KV cache; a new cache is created per batch of questions.
                None: caches with capacity for the answers, in buffers that are reused.

        Raises:
            ConfigError: A model with sliding-window attention: it counts cached tokens, and gaps
                in the positions would make that count wrong.
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
        self._reuses_buffers = make_cache is None
        self._cache_pool = CachePool()
        self._states = StateCache()
        self.num_layers = len(model.layers)
        self.static_shapes = next(model.parameters()).is_cuda

    @property
    def pass_costs(self) -> PassCosts:
        """How much longer a pass takes with more tokens: see `benchmarks/pass_costs.py`."""
        on_gpu = next(self._model.parameters()).is_cuda
        several, per_token = PASS_COSTS_GPU if on_gpu else PASS_COSTS_CPU
        return PassCosts(several=several, per_token=per_token, any_length=not self.static_shapes)

    @torch.inference_mode()
    def begin_prefill(self, inputs: InputSequence, prune_layer: int = 0) -> PausedPrefill:
        """Run the layers before `prune_layer` over the tokens that all questions share.

        Args:
            inputs: The embedded sequence with all visual tokens.
            prune_layer: In [0, num_layers). With 0 no layer runs yet.
        """
        if not 0 <= prune_layer < self.num_layers:
            raise ValueError(
                f'prune_layer: got {prune_layer}, allowed: 0 to {self.num_layers - 1}'
            )
        cache = self._make_cache()
        inputs = self._run_sequence(inputs, range(prune_layer), cache)
        return PausedPrefill(inputs, cache, prune_layer)

    @torch.inference_mode()
    def resume_prefill(
        self, paused: PausedPrefill, keep_indices: Sequence[Tensor] | None = None
    ) -> Prefix:
        """Run the remaining layers over the kept tokens.

        Args:
            paused: From `begin_prefill`; use it once, its cache becomes the prefix's.
            keep_indices: Per picture the kept visual tokens, int64, ascending; None keeps all.
        """
        inputs = paused.inputs
        if keep_indices is not None:
            inputs = drop_tokens(inputs, keep_indices)
        self._run_sequence(inputs, range(paused.prune_layer, self.num_layers), paused.cache)
        ends = torch.tensor([inputs.end_position], device=inputs.hidden_states.device)
        return Prefix(paused.cache, paused.prune_layer, ends)

    @torch.inference_mode()
    def extend(
        self,
        prefix: Prefix,
        texts: Sequence[InputSequence],
        *,
        max_new_tokens: int = 0,
        drafts: Tensor | None = None,
    ) -> tuple[Prefix, Tensor]:
        """Append texts to copies of `prefix`, one row per text; `prefix` itself stays unchanged.

        Args:
            prefix: One row without padding.
            texts: Each begins at the prefix's end position.
            max_new_tokens: Number of tokens to reserve capacity for; 0: the cache grows with each.
            drafts: Embeddings [rows, drafted, hidden] of tokens that may follow each text; they
                need reserved capacity, do not become part of the prefix, and the next tokens
                overwrite them.

        Returns:
            The longer prefix on a cache of its own, and the logits [rows, 1 + drafted,
            vocabulary] after each text and after each of its drafted tokens.
        """
        batch = pad_to_batch(texts)
        capacity = batch.embeddings.shape[1] + max_new_tokens if max_new_tokens else 0
        cache = self._copy_cache(prefix.cache, len(texts), capacity)
        longer = Prefix(cache, prefix.prune_layer, batch.end_positions, batch.is_real)
        if drafts is None:
            return longer, self._append(longer, batch.embeddings, batch.positions, 1)
        return longer, self._append_with_drafts(longer, batch, drafts)

    def _append_with_drafts(self, longer: Prefix, batch: PaddedBatch, drafts: Tensor) -> Tensor:
        num_drafted = drafts.shape[1]
        embeddings = torch.cat([batch.embeddings, drafts.to(batch.embeddings.dtype)], dim=1)
        steps = torch.arange(num_drafted, device=embeddings.device)
        after = longer.end_positions[:, None] + steps
        with_drafts = replace(longer, is_real=_extend_real(longer.is_real, num_drafted))
        positions = torch.cat([batch.positions, after], dim=1)
        logits = self._append(with_drafts, embeddings, positions, 1 + num_drafted)
        cache: Any = longer.cache
        for layer in cache.layers:
            layer.length -= num_drafted
        return logits

    @torch.inference_mode()
    def fork(self, prefix: Prefix, num_rows: int, *, max_new_tokens: int = 0) -> Prefix:
        """Return `num_rows` copies of `prefix`, which stays unchanged.

        Args:
            prefix: One row.
            num_rows: Number of copies.
            max_new_tokens: As in `extend`.
        """
        cache = self._copy_cache(prefix.cache, num_rows, max_new_tokens)
        return replace(prefix, cache=cache, end_positions=prefix.end_positions.expand(num_rows))

    @torch.inference_mode()
    def step(self, prefix: Prefix, embeddings: Tensor) -> tuple[Prefix, Tensor]:
        """Append one token to every row; the cache of `prefix` becomes the longer prefix's.

        Args:
            prefix: The sequence so far.
            embeddings: [rows, 1, hidden] of the tokens.

        Returns:
            The longer prefix and the logits [rows, vocabulary] after it.
        """
        is_real = _extend_real(prefix.is_real, 1)
        longer = replace(prefix, end_positions=prefix.end_positions + 1, is_real=is_real)
        return longer, self._append(longer, embeddings, prefix.end_positions[:, None], 1)[:, 0]

    @torch.inference_mode()
    def begin_decode_loop(
        self, prefix: Prefix, embed: Callable[[Tensor], Tensor]
    ) -> DecodeLoop | None:
        """Prepare to append tokens to `prefix` in place; takes over its cache.

        Args:
            prefix: The sequence so far.
            embed: Maps int64 [rows, tokens] token ids to their embeddings. It must be the model's
                own: captured graphs contain it.

        Returns:
            None if the cache of `prefix` has no fixed capacity.
        """
        cache: Any = prefix.cache
        if not isinstance(cache, StaticCache):
            return None
        groups = self._layer_groups(prefix.prune_layer)
        firsts = [cache.layers[group.start] for group in groups]
        shape = BatchShape(
            num_rows=len(prefix.end_positions),
            capacities=tuple(layer.capacity for layer in firsts),
            first_layers=tuple(group.start for group in groups),
        )
        dtype, device = firsts[0].dtype, firsts[0].device
        state = self._states.find(shape, cache.version, dtype=dtype, device=device)
        state.load(prefix.end_positions, [layer.length for layer in firsts], prefix.is_real)
        return DecodeLoop(
            state,
            partial(self._run_pass, state=state, cache=cache, groups=groups, embed=embed),
            min(layer.capacity - layer.length for layer in firsts),
            run=self._states.run if self.static_shapes else None,
        )

    def _run_pass(
        self,
        step: Pass,
        num_filled: int | None,
        *,
        state: BatchState,
        cache: StaticCache,
        groups: Sequence[range],
        embed: Callable[[Tensor], Tensor],
    ) -> None:
        """Append the tokens of a pass, and choose the most likely next ones."""
        hidden = embed(step.tokens)
        rotary = self._model.rotary_emb(hidden, state.positions(step))
        for number, layers in enumerate(groups):
            at = state.write_at(number, step, num_filled)
            mask = state.mask(number, at)
            for index in layers:
                cache.write_layer(index, at)
                hidden = self._run_layer(index, hidden, mask, rotary, cache)
        step.choice.copy_(most_likely(self._lm_head(self._model.norm(hidden))))

    def release(self) -> None:
        """Free the reused buffers and graphs; the next sweep allocates them again."""
        self._states.release()
        self._cache_pool.release()

    def _layer_groups(self, prune_layer: int) -> list[range]:
        """Return the layers in groups that have cached the same tokens."""
        groups = (range(prune_layer), range(prune_layer, self.num_layers))
        return [group for group in groups if group]

    def _append(self, prefix: Prefix, hidden: Tensor, positions: Tensor, num_last: int) -> Tensor:
        """Append tokens to the cache of `prefix`, whose other fields already include them.

        Returns:
            Logits [rows, num_last, vocabulary] after the last tokens.
        """
        for layers in self._layer_groups(prefix.prune_layer):
            hidden = self._run(hidden, positions, layers, prefix.cache, is_real=prefix.is_real)
        logits: Tensor = self._lm_head(self._model.norm(hidden[:, -num_last:]))
        return logits

    def _run_sequence(self, inputs: InputSequence, layers: range, cache: Cache) -> InputSequence:
        hidden = self._run(
            inputs.hidden_states,
            inputs.positions,
            layers,
            cache,
            deepstack=inputs.deepstack,
            visual_columns=inputs.visual_columns if inputs.deepstack is not None else None,
        )
        return replace(inputs, hidden_states=hidden)

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
        """Run tokens through `layers`, all of which have cached the same tokens.

        Args:
            hidden: [rows, length, hidden] before the first of the layers.
            positions: int64 [rows, length] or [3, rows, length].
            layers: The layers to run; may be empty.
            cache: Keys and values so far; the tokens are appended.
            is_real: As in `Prefix`, these tokens included.
            deepstack: As in `InputSequence`.
            visual_columns: int64, the columns that the deepstack features are added to.

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
        # Positions enter through the rotary phases only: attention would read gaps in position_ids
        # as boundaries between packed sequences.
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

    def _copy_cache(self, cache: Cache, num_rows: int, num_new_tokens: int) -> Cache:
        """Return a cache with `num_rows` copies of the one row in `cache`."""
        if num_new_tokens and self._reuses_buffers:
            return self._cache_pool.acquire(cache, num_rows, num_new_tokens)
        copy = self._make_cache()
        for index, layer in enumerate(cache.layers):
            length = int(cache.get_seq_length(index))
            keys, values = layer.keys[:, :, :length], layer.values[:, :, :length]
            shape = (num_rows, -1, -1, -1)
            copy.update(keys.expand(shape), values.expand(shape), index)
        return copy
