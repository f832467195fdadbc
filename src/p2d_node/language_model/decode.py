"""The decoder: prefill in two halves, between which tokens are dropped, and decode steps.

Layers before `prune_layer` see and cache all tokens; the layers from it on see and cache only the
kept ones. The cache is ragged: each of the two groups of layers has its own causal mask and rotary
phases. A kept token's rotary phase is that of its position in the full sequence, and decoding
continues from the length of the full sequence.

The shared prefix has a cache of its own. Questions continue in a second cache with capacity for
their answers, whose buffers are reused from sweep to sweep (`kv_cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from p2d_node.errors import ConfigError
from p2d_node.language_model.decode_loop import CapturedStep, DecodeLoop, StepCache, StepShape
from p2d_node.language_model.input_sequence import drop_tokens, InputSequence, pad_to_batch
from p2d_node.language_model.kv_cache import CachePool, StaticCache
from p2d_node.language_model.prefix import PausedPrefill, Prefix
import torch
from torch import nn, Tensor
from transformers import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask


def most_likely(logits: Tensor) -> Tensor:
    """Return the ids of the largest logits and their log probabilities, float64 [2, rows].

    float64 represents ids exactly, so that both reach the host in one copy.

    Args:
        logits: [rows, vocabulary].
    """
    scores = logits.float()
    best = scores.max(dim=-1)
    log_probabilities = best.values - scores.logsumexp(dim=-1)
    return torch.stack([best.indices.double(), log_probabilities.double()])


class Decoder:
    """A causal language model: decoder layers and output layer.

    Use it from one thread at a time.

    Attributes:
        num_layers: Number of decoder layers.
        static_shapes: Whether answers are decoded with static shapes, which a GPU replays as a
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
        self._steps = StepCache()
        self.num_layers = len(model.layers)
        self.static_shapes = next(model.parameters()).is_cuda

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
        self, prefix: Prefix, texts: Sequence[InputSequence], *, max_new_tokens: int = 0
    ) -> tuple[Prefix, Tensor]:
        """Append texts to copies of `prefix`, one row per text; `prefix` itself stays unchanged.

        Args:
            prefix: One row without padding.
            texts: Each begins at the prefix's end position.
            max_new_tokens: Number of tokens to reserve capacity for; 0: the cache grows with each.

        Returns:
            The longer prefix on a cache of its own, and the logits [rows, vocabulary] after it.
        """
        batch = pad_to_batch(texts)
        capacity = batch.embeddings.shape[1] + max_new_tokens if max_new_tokens else 0
        cache = self._copy_cache(prefix.cache, len(texts), capacity)
        longer = Prefix(cache, prefix.prune_layer, batch.end_positions, batch.is_real)
        return longer, self._append(longer, batch.embeddings, batch.positions)

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
        is_real = prefix.is_real
        if is_real is not None:
            is_real = torch.cat([is_real, is_real.new_ones(len(is_real), 1)], dim=1)
        longer = replace(prefix, end_positions=prefix.end_positions + 1, is_real=is_real)
        return longer, self._append(longer, embeddings, prefix.end_positions[:, None])

    @torch.inference_mode()
    def begin_decode_loop(
        self, prefix: Prefix, embed: Callable[[Tensor], Tensor]
    ) -> DecodeLoop | None:
        """Prepare to append tokens to `prefix` with static shapes; takes over its cache.

        Args:
            prefix: The sequence so far.
            embed: Maps int64 [rows, 1] token ids to their embeddings. It must be the model's own:
                captured graphs contain it.

        Returns:
            None if static shapes are off, or the cache of `prefix` is not a `StaticCache`.
        """
        cache: Any = prefix.cache
        if not self.static_shapes or not isinstance(cache, StaticCache):
            return None
        groups = self._layer_groups(prefix.prune_layer)
        first_layers = [cache.layers[group.start] for group in groups]
        shape = StepShape(
            num_rows=len(prefix.end_positions),
            capacities=tuple(layer.capacity for layer in first_layers),
            first_layers=tuple(group.start for group in groups),
        )
        dtype, device = first_layers[0].dtype, first_layers[0].device
        step = self._steps.find(shape, cache.version, dtype=dtype, device=device)
        step.load(prefix.end_positions, [layer.length for layer in first_layers], prefix.is_real)
        num_free_columns = min(layer.capacity - layer.length for layer in first_layers)
        for group, slot in zip(groups, step.slots, strict=True):
            for index in group:
                cache.layers[index].use_static_shape(slot)
        compute = partial(self._compute_step, step, cache, groups, embed)
        return DecodeLoop(self._steps, step, compute, num_free_columns)

    def _compute_step(
        self,
        step: CapturedStep,
        cache: Cache,
        groups: Sequence[range],
        embed: Callable[[Tensor], Tensor],
    ) -> None:
        """Append the step's tokens; no shape depends on the number of cached tokens."""
        step.unmask_token()
        hidden = embed(step.tokens)
        rotary = self._model.rotary_emb(hidden, step.positions)
        for layers, mask in zip(groups, step.masks, strict=True):
            for index in layers:
                hidden = self._run_layer(index, hidden, mask, rotary, cache)
        step.advance(most_likely(self._lm_head(self._model.norm(hidden[:, -1]))))

    def release(self) -> None:
        """Free the reused buffers and graphs; the next sweep allocates them again."""
        self._steps.release()
        self._cache_pool.release()

    def _layer_groups(self, prune_layer: int) -> list[range]:
        """Return the layers in groups that have cached the same tokens."""
        groups = (range(prune_layer), range(prune_layer, self.num_layers))
        return [group for group in groups if group]

    def _append(self, prefix: Prefix, hidden: Tensor, positions: Tensor) -> Tensor:
        """Append tokens to the cache of `prefix`, whose other fields already include them.

        Returns:
            Logits [rows, vocabulary] after the last token.
        """
        for layers in self._layer_groups(prefix.prune_layer):
            hidden = self._run(hidden, positions, layers, prefix.cache, is_real=prefix.is_real)
        logits: Tensor = self._lm_head(self._model.norm(hidden[:, -1]))
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
