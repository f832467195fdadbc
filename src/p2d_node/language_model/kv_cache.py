"""Room for the keys and values of growing answers: allocated once, written in place, kept.

Keys and values of a shared beginning come in; out goes a cache of several rows that holds copies
of them and has room for what follows. Its buffers serve the next sweep too.
"""

from __future__ import annotations

from typing import Any
import weakref

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

CAPACITY_STEP = 256
"""Capacities are multiples of this, so that sweeps of about one size share a CUDA graph."""


class RoomLayer(DynamicLayer):
    """Keys and values of one decoder layer, in buffers with room for more.

    Attributes:
        keys: Float [rows, heads, capacity, head_dim].
        values: Of the same shape.
        length: How many columns are filled.
        slot: int64 [1] on the buffers' device, the column where the next token goes. Where it is
            set, `length` does not count and all columns are handed to attention, whose mask has to
            hide the empty ones: so no shape changes from token to token.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.length = 0
        self.slot: Tensor | None = None

    @property
    def capacity(self) -> int:
        """How many columns there are."""
        return int(self.keys.shape[2])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write what comes next [rows, heads, tokens, head_dim]; returns what attention reads.

        Raises:
            ValueError: There is no room for it.
        """
        if self.slot is not None:
            self.keys.index_copy_(2, self.slot, key_states)
            self.values.index_copy_(2, self.slot, value_states)
            return self.keys, self.values
        start, end = self.length, self.length + key_states.shape[2]
        if end > self.capacity:
            raise ValueError(
                f'cache: got {end} tokens, allowed: {self.capacity}; reserve more room'
            )
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Return how many columns are filled."""
        return self.length

    def fix_shape(self, slot: Tensor) -> None:
        """Hand all columns to attention from now on; `slot` says where the next token goes."""
        # Old contents may be no numbers, which a weight of zero does not hide.
        self.keys[:, :, self.length :].zero_()
        self.values[:, :, self.length :].zero_()
        self.slot = slot


class RoomCache(Cache):
    """A KV cache with room in every layer; `CacheRoom` lends it.

    Attributes:
        version: Equal for caches that lie in the same buffers, one after the other.
    """

    def __init__(self, layers: list[RoomLayer], version: int) -> None:
        super().__init__(layers=layers)
        self.version = version


class CacheRoom:
    """Buffers that are lent to one cache at a time.

    They grow where a cache needs more, and stay as large as the largest one needed until
    `release`. A cache that is still in use when the next one is asked for keeps its buffers for
    itself. Use it from one thread at a time.
    """

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}
        self._lent: weakref.ref[RoomCache] | None = None
        self._version = 0

    def lend(self, source: Cache, num_rows: int, num_more: int) -> RoomCache:
        """Return a cache with `num_rows` copies of the one row in `source`.

        Args:
            source: Its layers may have cached different numbers of tokens.
            num_rows: How many rows follow it.
            num_more: How many further tokens every layer has room for.
        """
        if self._lent is not None and self._lent() is not None:
            self.release()
        layers = []
        for index, layer in enumerate(source.layers):
            length = int(source.get_seq_length(index))
            keys, values = layer.keys[:, :, :length], layer.values[:, :, :length]
            room = self._make_layer(index, keys, num_rows, length + num_more)
            room.update(keys.expand(num_rows, -1, -1, -1), values.expand(num_rows, -1, -1, -1))
            layers.append(room)
        cache = RoomCache(layers, self._version)
        self._lent = weakref.ref(cache)
        return cache

    def release(self) -> None:
        """Give up the buffers; what is lent keeps its own alive."""
        self._buffers.clear()
        self._lent = None
        self._version += 1

    def _make_layer(self, index: int, like: Tensor, num_rows: int, num_tokens: int) -> RoomLayer:
        capacity = -(-num_tokens // CAPACITY_STEP) * CAPACITY_STEP
        shape = (2, num_rows, like.shape[1], capacity, like.shape[3])
        buffer = self._take_buffer(index, like, torch.Size(shape).numel())
        keys, values = buffer.view(shape)
        return RoomLayer(keys, values)

    def _take_buffer(self, index: int, like: Tensor, numel: int) -> Tensor:
        """Return the first `numel` elements of a layer's buffer, allocated anew if it must be."""
        kept = self._buffers.pop(index, None)
        if kept is None or kept.numel() < numel:
            del kept  # first: the old one and the new one need not fit together
            self._version += 1
            kept = torch.empty(numel, dtype=like.dtype, device=like.device)
        self._buffers[index] = kept
        return kept[:numel]
