"""Greedy decoding in steps of one shape, captured in a CUDA graph where there is a GPU.

A step reads and writes tensors that stay where they are: token, position, column in the cache and
attention mask come from them and are moved on by the step itself. So one captured graph serves
every token, of this sweep and of later ones with as many rows and as much room.
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
"""Shapes whose step is kept: numbers of questions asked together, times sizes of the cache."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step's tensors and its graph are made for.

    Attributes:
        num_rows: Rows that are decoded together.
        capacities: Columns of the cache, per part of layers that have cached the same tokens.
        first_layers: The first layer of each part.
    """

    num_rows: int
    capacities: tuple[int, ...]
    first_layers: tuple[int, ...]


class FixedStep:
    """The tensors of a step, and its graph once it is captured.

    Attributes:
        tokens: int64 [rows, 1], what is appended.
        positions: int64 [rows, 1], where it stands.
        slots: Per part int64 [1], the column of its keys and values.
        masks: Per part float [rows, 1, 1, capacity], added to the attention's scores: 0 where it
            looks, -inf elsewhere.
        choice: float64 [2, rows]: the likeliest ids after it, and their log probabilities.
        graph: None until it is captured.
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
        """Take up what is cached so far.

        Args:
            positions: int64 [rows], of the next token.
            lengths: Filled columns of the cache, per part.
            is_real: Bool [rows, columns] over the last filled columns, False where one is padding;
                None where none is.
        """
        self.positions.copy_(positions[:, None])
        for mask, slot, length in zip(self.masks, self.slots, lengths, strict=True):
            slot.fill_(length)
            mask.fill_(-torch.inf)
            mask[..., :length] = 0.0
            if is_real is not None:
                padded = mask[:, 0, 0, length - is_real.shape[1] : length]
                padded.masked_fill_(~is_real, -torch.inf)

    def show_token(self) -> None:
        """Let attention see the columns of the token that is appended."""
        for mask, slot in zip(self.masks, self.slots, strict=True):
            mask.index_fill_(3, slot, 0.0)

    def move_on(self, choice: Tensor) -> None:
        """Keep what was chosen, and make ready for the token after this one."""
        self.choice.copy_(choice)
        self.positions.add_(1)
        for slot in self.slots:
            slot.add_(1)


class StepGraphs:
    """The steps of the shapes that were used last, and their graphs; for one thread at a time.

    Without a GPU, and after a capture that failed, steps run as they are, without a graph.
    """

    def __init__(self) -> None:
        self._steps: OrderedDict[StepShape, FixedStep] = OrderedDict()
        self._version = -1
        self._capture_works = True

    def find(
        self, shape: StepShape, version: int, *, dtype: torch.dtype, device: torch.device
    ) -> FixedStep:
        """Return the step for `shape`, made anew where there is none.

        Args:
            shape: What it is for.
            version: Of the cache: a graph holds the addresses of the buffers it was captured with.
            dtype: Number format of the hidden states.
            device: Where they are.
        """
        if version != self._version:
            self.release()
            self._version = version
        step = self._steps.pop(shape, None)
        if step is None:
            while len(self._steps) >= MAX_SHAPES:
                self._steps.popitem(last=False)
            step = FixedStep(shape, dtype, device)
        self._steps[shape] = step
        return step

    def release(self) -> None:
        """Give up all steps and the memory of their graphs."""
        self._steps.clear()

    def run(self, step: FixedStep, compute: Callable[[], None]) -> None:
        """Do one step: replay its graph, or `compute` it and then capture that."""
        if step.graph is not None:
            step.graph.replay()
            return
        compute()  # has also set up what may not be set up during a capture
        if step.tokens.is_cuda and self._capture_works:
            step.graph = self._capture(compute, step.tokens.device)

    def _capture(
        self, compute: Callable[[], None], device: torch.device
    ) -> torch.cuda.CUDAGraph | None:
        # Graphs can share memory: they run one at a time, and what is read after one lies outside.
        captured = (step.graph for step in self._steps.values())
        pool = next((graph.pool() for graph in captured if graph is not None), None)
        try:
            graph = torch.cuda.CUDAGraph()
            # A capture that fails leaves its own stream current; the outer block takes it back.
            # thread_local: threads that fill camera buffers may go on using the device.
            with (
                torch.cuda.stream(torch.cuda.current_stream(device)),
                torch.cuda.graph(graph, pool=pool, capture_error_mode='thread_local'),
            ):
                compute()
        except RuntimeError as err:
            self._capture_works = False
            reason = str(err).partition('\n')[0]
            LOGGER.warning('decoding without CUDA graphs, which is slower: %s', reason)
            return None
        return graph


class FixedSteps:
    """Appends tokens to one batch of prompts, a step of fixed shape each."""

    def __init__(
        self, graphs: StepGraphs, step: FixedStep, compute: Callable[[], None], num_left: int
    ) -> None:
        """Take a loaded step.

        Args:
            graphs: Where the step and its graph are kept.
            step: Loaded with what is cached so far.
            compute: Does the step.
            num_left: Tokens that there is room for.
        """
        self._graphs = graphs
        self._step = step
        self._compute = compute
        self._num_left = num_left

    @torch.inference_mode()
    def advance(self, tokens: Tensor) -> Tensor:
        """Append one token to every row, without waiting for the device.

        Args:
            tokens: Their ids [rows], in any number format.

        Returns:
            As `most_likely` after them, in a tensor that the next call overwrites.

        Raises:
            ValueError: There is no room left.
        """
        if self._num_left == 0:
            raise ValueError('cache: got one token more than there is room for; reserve more room')
        self._num_left -= 1
        self._step.tokens.copy_(tokens[:, None])
        self._graphs.run(self._step, self._compute)
        return self._step.choice
