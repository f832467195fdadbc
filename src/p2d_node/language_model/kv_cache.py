"""KV caches of fixed capacity: allocated once, written in place, reused for the next sweep.

The cached tokens of a shared prefix come in. A cache of several rows goes out that holds copies of
them and has capacity for the tokens that follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
import weakref

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

SHRINK_AFTER = 128
"""Caches that need little before the buffers shrink: about ten seconds at 12 Hz, so that bursts a
few seconds apart do not allocate again and again."""

CAPACITY_STEP = 256
"""Capacities are multiples of this, so that sweeps of about equal size share a CUDA graph."""


@dataclass(frozen=True, slots=True)
class WriteAt:
    """Where the next pass writes its keys and values, and what attention reads.

    Attributes:
        rows: int64 [rows, 1], 0 to rows - 1.
        columns: int64 [rows, tokens], the columns of each row's tokens.
        end: Number of columns that attention gets, None for all; its mask must hide those that
            are not the row's own.
    """

    rows: Tensor
    columns: Tensor
    end: int | None


class StaticLayer(DynamicLayer):
    """Keys and values of one decoder layer in buffers of fixed capacity.

    Attributes:
        keys: Float [rows, heads, capacity, head_dim].
        values: Of the same shape.
        length: Number of filled columns.
        write_at: Where the next tokens are written; None: behind the filled columns. When it is
            set, `length` is not updated.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.length = 0
        self.write_at: WriteAt | None = None

    @property
    def capacity(self) -> int:
        """Number of columns."""
        return int(self.keys.shape[2])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append key and value states [rows, heads, tokens, head_dim].

        Returns:
            The keys and values that attention reads.

        Raises:
            ValueError: The capacity is exceeded.
        """
        if self.write_at is not None:
            return self._write(key_states, value_states, self.write_at)
        start, end = self.length, self.length + key_states.shape[2]
        if end > self.capacity:
            raise ValueError(
                f'KV cache: got {end} tokens, allowed: {self.capacity}; acquire a larger cache'
            )
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _write(
        self, key_states: Tensor, value_states: Tensor, at: WriteAt
    ) -> tuple[Tensor, Tensor]:
        places = (at.rows, at.columns)
        self.keys.transpose(1, 2).index_put_(places, key_states.transpose(1, 2))
        self.values.transpose(1, 2).index_put_(places, value_states.transpose(1, 2))
        return self.keys[:, :, : at.end], self.values[:, :, : at.end]

    def get_seq_length(self) -> int:
        """Return the number of filled columns."""
        return self.length

    def clear_rest(self) -> None:
        """Set the empty columns to zero: old contents may be NaN, which no mask hides."""
        self.keys[:, :, self.length :].zero_()
        self.values[:, :, self.length :].zero_()


class StaticCache(Cache):
    """A KV cache of `StaticLayer`s, acquired from a `CachePool`.

    Attributes:
        version: Changes when the pool allocates other buffers; caches of equal version use the
            same memory.
    """

    def __init__(self, layers: list[StaticLayer], version: int) -> None:
        super().__init__(layers=layers)
        self.version = version

    def write_layer(self, index: int, at: WriteAt) -> None:
        """Let a layer write its next tokens at `at`."""
        layer: Any = self.layers[index]
        layer.write_at = at


class CachePool:
    """Buffers for one cache at a time, one buffer per layer.

    Buffers grow when a cache needs more, and are kept until `release`. When the last
    `SHRINK_AFTER` caches have needed less than half of them, they are allocated anew. If a cache
    is still in use when the next one is acquired, it keeps its buffers and the pool allocates new
    ones. Use it from one thread at a time.
    """

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}
        self._num_small = 0
        self._in_use: weakref.ref[StaticCache] | None = None
        self._version = 0

    def acquire(self, source: Cache, num_rows: int, num_new_tokens: int) -> StaticCache:
        """Return a cache that begins with `num_rows` copies of the one row in `source`.

        Args:
            source: A cache of one row; its layers may hold different numbers of tokens.
            num_rows: Number of copies.
            num_new_tokens: Number of further tokens that every layer must have capacity for.
        """
        is_in_use = self._in_use is not None and self._in_use() is not None
        if is_in_use or self._num_small >= SHRINK_AFTER:
            self.release()
        held = sum(buffer.numel() for buffer in self._buffers.values())
        layers = []
        for index, layer in enumerate(source.layers):
            length = int(source.get_seq_length(index))
            keys, values = layer.keys[:, :, :length], layer.values[:, :, :length]
            copy = self._make_layer(index, keys, num_rows, length + num_new_tokens)
            copy.update(keys.expand(num_rows, -1, -1, -1), values.expand(num_rows, -1, -1, -1))
            copy.clear_rest()
            layers.append(copy)
        used = sum(2 * layer.keys.numel() for layer in layers)
        self._num_small = self._num_small + 1 if 2 * used < held else 0
        cache = StaticCache(layers, self._version)
        self._in_use = weakref.ref(cache)
        return cache

    def release(self) -> None:
        """Drop the buffers; a cache in use keeps its own alive."""
        self._buffers.clear()
        self._in_use = None
        self._num_small = 0
        self._version += 1

    def _make_layer(self, index: int, like: Tensor, num_rows: int, num_tokens: int) -> StaticLayer:
        capacity = -(-num_tokens // CAPACITY_STEP) * CAPACITY_STEP
        shape = (2, num_rows, like.shape[1], capacity, like.shape[3])
        buffer = self._take_buffer(index, like, torch.Size(shape).numel())
        keys, values = buffer.view(shape)
        return StaticLayer(keys, values)

    def _take_buffer(self, index: int, like: Tensor, numel: int) -> Tensor:
        """Return the first `numel` elements of a layer's buffer; allocates if it is too small."""
        buffer = self._buffers.pop(index, None)
        if buffer is None or buffer.numel() < numel:
            del buffer  # free it first: both would not fit in memory at once
            self._version += 1
            buffer = torch.empty(numel, dtype=like.dtype, device=like.device)
        self._buffers[index] = buffer
        return buffer[:numel]
