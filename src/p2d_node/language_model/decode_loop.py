"""Greedy decoding with static shapes: one decode step, captured as a CUDA graph on a GPU.

The step reads and writes tensors at fixed addresses: token, position, cache column and attention
mask. It advances them itself. One captured graph therefore serves every token of this sweep and of
later sweeps with the same number of rows and the same cache capacity.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import logging

import torch
from torch import Tensor

LOGGER = logging.getLogger(__name__)

MAX_SHAPES = 8
"""Number of step shapes whose tensors and graphs are kept; the least recently used one goes."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """The shape of a decode step.

    Attributes:
        num_rows: Number of answers that are decoded together.
        capacities: Cache columns, per group of layers that have cached the same tokens.
        first_layers: The first layer of each group.
    """

    num_rows: int
    capacities: tuple[int, ...]
    first_layers: tuple[int, ...]


class CapturedStep:
    """The tensors of one decode step, and its CUDA graph after capture.

    Attributes:
        tokens: int64 [rows, 1], the token ids to append.
        positions: int64 [rows, 1], their positions.
        slots: Per group of layers int64 [1], the cache column of their keys and values.
        masks: Per group of layers float [rows, 1, 1, capacity], added to the attention scores:
            0 where attention looks, -inf elsewhere.
        choice: float64 [2, rows], the most likely next ids and their log probabilities.
        graph: None until captured.
    """

    def __init__(self, shape: StepShape, dtype: torch.dtype, device: torch.device) -> None:
        rows = shape.num_rows
        self.tokens = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.positions = torch.zeros_like(self.tokens)
        self.slots = [torch.zeros_like(self.tokens[0]) for _ in shape.capacities]
        self.masks = [
            torch.zeros(rows, 1, 1, capacity, dtype=dtype, device=device)
            for capacity in shape.capacities
        ]
        self.choice = torch.zeros(2, rows, dtype=torch.float64, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def load(self, positions: Tensor, lengths: Sequence[int], is_real: Tensor | None) -> None:
        """Set positions, cache columns and masks to the present state of the cache.

        Args:
            positions: int64 [rows], of the next token.
            lengths: Filled columns of the cache, per group of layers.
            is_real: Bool [rows, columns] over the last filled columns, False in padding columns;
                None if there is no padding.
        """
        self.positions.copy_(positions[:, None])
        for mask, slot, length in zip(self.masks, self.slots, lengths, strict=True):
            slot.fill_(length)
            mask.fill_(-torch.inf)
            mask[..., :length] = 0.0
            if is_real is not None:
                padded = mask[:, 0, 0, length - is_real.shape[1] : length]
                padded.masked_fill_(~is_real, -torch.inf)

    def unmask_token(self) -> None:
        """Let attention see the columns of the token that is appended."""
        for mask, slot in zip(self.masks, self.slots, strict=True):
            mask.index_fill_(3, slot, 0.0)

    def advance(self, choice: Tensor) -> None:
        """Store the choice, and move positions and cache columns on by one token."""
        self.choice.copy_(choice)
        self.positions.add_(1)
        for slot in self.slots:
            slot.add_(1)


class StepCache:
    """The most recently used steps and their graphs. Use it from one thread at a time.

    Without a GPU, or after a failed capture, steps run without a graph.
    """

    def __init__(self) -> None:
        self._steps: OrderedDict[StepShape, CapturedStep] = OrderedDict()
        self._version = -1
        self._can_capture = True

    def find(
        self, shape: StepShape, version: int, *, dtype: torch.dtype, device: torch.device
    ) -> CapturedStep:
        """Return the step for `shape`; creates it if there is none.

        Args:
            shape: The shape of the step.
            version: Of the KV cache: a graph holds the addresses of the buffers that it was
                captured with.
            dtype: Of the hidden states.
            device: Of the hidden states.
        """
        if version != self._version:
            self.release()
            self._version = version
        step = self._steps.pop(shape, None)
        if step is None:
            while len(self._steps) >= MAX_SHAPES:
                self._steps.popitem(last=False)
            step = CapturedStep(shape, dtype, device)
        self._steps[shape] = step
        return step

    def release(self) -> None:
        """Drop all steps and the memory of their graphs."""
        self._steps.clear()

    def run(self, step: CapturedStep, compute: Callable[[], None]) -> None:
        """Run one step: replay its graph, or call `compute` and then capture it."""
        if step.graph is not None:
            step.graph.replay()
            return
        compute()  # also warms up what must not be set up during a capture
        if step.tokens.is_cuda and self._can_capture:
            step.graph = self._capture(compute, step.tokens.device)

    def _capture(
        self, compute: Callable[[], None], device: torch.device
    ) -> torch.cuda.CUDAGraph | None:
        # Graphs can share one memory pool: they run one at a time, and their results lie outside.
        captured = (step.graph for step in self._steps.values())
        pool = next((graph.pool() for graph in captured if graph is not None), None)
        try:
            graph = torch.cuda.CUDAGraph()
            # A failed capture leaves its own stream current; the outer context restores it.
            # thread_local: threads that fill camera buffers may go on using the device.
            with (
                torch.cuda.stream(torch.cuda.current_stream(device)),
                torch.cuda.graph(graph, pool=pool, capture_error_mode='thread_local'),
            ):
                compute()
        except RuntimeError as err:
            self._can_capture = False
            reason = str(err).partition('\n')[0]
            LOGGER.warning('decoding without CUDA graphs, which is slower: %s', reason)
            return None
        return graph


class DecodeLoop:
    """Appends tokens to one batch of prompts, with a step of static shape."""

    def __init__(
        self,
        steps: StepCache,
        step: CapturedStep,
        compute: Callable[[], None],
        num_free_columns: int,
    ) -> None:
        """Wrap a loaded step.

        Args:
            steps: Runs and captures the step.
            step: Loaded with the present state of the cache.
            compute: Computes the step without a graph.
            num_free_columns: Number of tokens that the cache has capacity for.
        """
        self._steps = steps
        self._step = step
        self._compute = compute
        self._num_free_columns = num_free_columns

    @torch.inference_mode()
    def advance(self, tokens: Tensor) -> Tensor:
        """Append one token to every row, without waiting for the device.

        Args:
            tokens: Token ids [rows], in any dtype.

        Returns:
            The result of `most_likely` after them, in a tensor that the next call overwrites.

        Raises:
            ValueError: The cache is full.
        """
        if self._num_free_columns == 0:
            raise ValueError(
                'KV cache: got one token more than its capacity; acquire a larger cache'
            )
        self._num_free_columns -= 1
        self._step.tokens.copy_(tokens[:, None])
        self._steps.run(self._step, self._compute)
        return self._step.choice
