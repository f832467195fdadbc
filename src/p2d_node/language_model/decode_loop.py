"""Greedy decode passes over a cache of fixed capacity, captured as CUDA graphs on a GPU.

A pass appends the same number of tokens to every row, at a place of the row's own: rows accept
different numbers of drafted tokens, and what a row did not accept is overwritten by its next pass.

On a GPU a pass reads and writes tensors at fixed addresses, and no shape depends on the number of
cached tokens. One captured graph therefore serves every pass of its width, of this sweep and of
later sweeps with the same number of rows and the same cache capacity.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import logging

from p2d_node.language_model.kv_cache import WriteAt
import torch
from torch import Tensor

LOGGER = logging.getLogger(__name__)

MAX_SHAPES = 8
"""Number of batch shapes whose tensors and graphs are kept; the least recently used one goes."""


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The shape of a batch of answers.

    Attributes:
        num_rows: Number of answers that are decoded together.
        capacities: Cache columns, per group of layers that have cached the same tokens.
        first_layers: The first layer of each group.
    """

    num_rows: int
    capacities: tuple[int, ...]
    first_layers: tuple[int, ...]


class Pass:
    """The tensors of decoder passes of one width, and their CUDA graph after capture.

    Attributes:
        inputs: int64 [rows, 1 + width]: how many tokens of its answer a row has cached, and the
            ids of the tokens to append.
        choice: float64 [2, rows, width], the most likely next ids after each token and their log
            probabilities.
        graph: None until captured.
    """

    def __init__(self, num_rows: int, width: int, device: torch.device) -> None:
        shape = (num_rows, 1 + width)
        self._host = torch.zeros(shape, dtype=torch.int64, pin_memory=device.type == 'cuda')
        self.inputs = torch.zeros(shape, dtype=torch.int64, device=device)
        self.choice = torch.zeros(2, num_rows, width, dtype=torch.float64, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self._columns = torch.arange(width, device=device)

    def load(self, num_cached: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """Set the inputs, without waiting for the device; the pass before has been read."""
        rows = [[cached, *ids] for cached, ids in zip(num_cached, tokens, strict=True)]
        self._host.copy_(torch.tensor(rows))
        self.inputs.copy_(self._host, non_blocking=True)

    @property
    def tokens(self) -> Tensor:
        """The ids to append, int64 [rows, width]."""
        return self.inputs[:, 1:]

    @property
    def offsets(self) -> Tensor:
        """Their places in the answers, int64 [rows, width]."""
        return self.inputs[:, :1] + self._columns


class BatchState:
    """What the passes of a batch share: where its answers begin, and what they may attend to.

    Attributes:
        shape: Of the batch.
        passes: Width to pass.
    """

    def __init__(self, shape: BatchShape, dtype: torch.dtype, device: torch.device) -> None:
        rows = shape.num_rows
        self.shape = shape
        self.passes: dict[int, Pass] = {}
        self._dtype, self._device = dtype, device
        self._rows = torch.arange(rows, device=device)[:, None]
        self._first_positions = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._lengths: tuple[int, ...] = ()
        self._first_columns = [torch.zeros_like(self._rows[:1]) for _ in shape.capacities]
        self._columns = [torch.arange(capacity, device=device) for capacity in shape.capacities]
        self._is_prompt = [
            torch.zeros(rows, 1, capacity, dtype=torch.bool, device=device)
            for capacity in shape.capacities
        ]

    def load(self, positions: Tensor, lengths: Sequence[int], is_real: Tensor | None) -> None:
        """Begin the answers after the present state of the cache.

        Args:
            positions: int64 [rows], of each answer's first token.
            lengths: Filled columns of the cache, per group of layers.
            is_real: Bool [rows, columns] over the last filled columns, False in padding columns;
                None if there is no padding.
        """
        self._lengths = tuple(lengths)
        self._first_positions.copy_(positions[:, None])
        for first, is_prompt, length in zip(
            self._first_columns, self._is_prompt, lengths, strict=True
        ):
            first.fill_(length)
            is_prompt.fill_(False)
            is_prompt[..., :length] = True
            if is_real is not None:
                is_prompt[:, 0, length - is_real.shape[1] : length] = is_real

    def pass_of(self, width: int) -> Pass:
        """Return the pass that appends `width` tokens to every row."""
        if width not in self.passes:
            self.passes[width] = Pass(self.shape.num_rows, width, self._device)
        return self.passes[width]

    def positions(self, step: Pass) -> Tensor:
        """Return the positions of the tokens of a pass, int64 [rows, width]."""
        return self._first_positions + step.offsets

    def write_at(self, group: int, step: Pass, num_filled: int | None) -> WriteAt:
        """Return where the layers of a group write the tokens of a pass.

        Args:
            group: Number of the group.
            step: The pass.
            num_filled: Columns of answers that attention reads; None: all columns.
        """
        columns = self._first_columns[group] + step.offsets
        end = None if num_filled is None else self._lengths[group] + num_filled
        return WriteAt(self._rows, columns, end)

    def mask(self, group: int, at: WriteAt) -> Tensor:
        """Return what attention adds to its scores, float [rows, 1, width, columns].

        A token sees the prompt, its answer so far and itself.
        """
        columns = self._columns[group][: at.end]
        is_answer = (columns >= self._first_columns[group]) & (columns <= at.columns[..., None])
        sees = is_answer | self._is_prompt[group][..., : at.end]
        mask = torch.zeros(sees.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(~sees, -torch.inf)[:, None]


class StateCache:
    """The most recently used batch states and their graphs. Use it from one thread at a time.

    Without a GPU, or after a failed capture, passes run without a graph.
    """

    def __init__(self) -> None:
        self._states: OrderedDict[BatchShape, BatchState] = OrderedDict()
        self._version = -1
        self._can_capture = True

    def find(
        self, shape: BatchShape, version: int, *, dtype: torch.dtype, device: torch.device
    ) -> BatchState:
        """Return the state for `shape`; creates it if there is none.

        Args:
            shape: The shape of the batch.
            version: Of the KV cache: a graph holds the addresses of the buffers that it was
                captured with.
            dtype: Of the hidden states.
            device: Of the hidden states.
        """
        if version != self._version:
            self.release()
            self._version = version
        state = self._states.pop(shape, None)
        if state is None:
            while len(self._states) >= MAX_SHAPES:
                self._states.popitem(last=False)
            state = BatchState(shape, dtype, device)
        self._states[shape] = state
        return state

    def release(self) -> None:
        """Drop all states and the memory of their graphs."""
        self._states.clear()

    def run(self, step: Pass, compute: Callable[[], None]) -> None:
        """Run one pass: replay its graph, or call `compute` and then capture it."""
        if step.graph is not None:
            step.graph.replay()
            return
        compute()  # also warms up what must not be set up during a capture
        if step.inputs.is_cuda and self._can_capture:
            step.graph = self._capture(compute, step.inputs.device)

    def _capture(
        self, compute: Callable[[], None], device: torch.device
    ) -> torch.cuda.CUDAGraph | None:
        # Graphs can share one memory pool: they run one at a time, and their results lie outside.
        steps = (step for state in self._states.values() for step in state.passes.values())
        pool = next((step.graph.pool() for step in steps if step.graph is not None), None)
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
    """Appends tokens to one batch of prompts."""

    takes_drafts = True

    def __init__(
        self,
        state: BatchState,
        compute: Callable[[Pass, int | None], None],
        num_free_columns: int,
        *,
        run: Callable[[Pass, Callable[[], None]], None] | None,
    ) -> None:
        """Wrap a loaded state.

        Args:
            state: Loaded with the present state of the cache.
            compute: Computes a pass; gets how many columns of answers attention reads, or None
                for all columns.
            num_free_columns: Number of tokens that the cache has capacity for.
            run: Runs passes whose shapes do not depend on the number of cached tokens, such as
                `StateCache.run`; None: attention reads only what the longest answer has filled.
        """
        self._state = state
        self._compute = compute
        self._num_free_columns = num_free_columns
        self._run = run

    @torch.inference_mode()
    def advance(self, num_cached: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens to every row, without waiting for the device.

        Args:
            num_cached: Per row how many tokens of its answer were appended before and stay.
            tokens: Per row the token ids; equally many for all rows.

        Returns:
            The result of `most_likely` after each of them, float64 [2, rows, width], in a tensor
            that later passes overwrite.

        Raises:
            ValueError: The cache is full.
        """
        width = len(tokens[0])
        filled = max(num_cached) + width
        if filled > self._num_free_columns:
            raise ValueError(
                f'KV cache: got {filled} tokens after the prompt, allowed: '
                f'{self._num_free_columns}; acquire a larger cache'
            )
        step = self._state.pass_of(width)
        step.load(num_cached, tokens)
        if self._run is None:
            self._compute(step, filled)
        else:
            self._run(step, lambda: self._compute(step, None))
        return step.choice
