"""T-FPS as plain torch operations on any device, and the same captured in a CUDA graph.

Visual tokens [views, tokens, hidden] come in; picks in their order, int64 [views, picks], go out.
Nothing waits for the device. On GPUs without Triton (some Jetson set-ups) the CUDA graph removes
the launch cost of the small kernels of each pick.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from p2d_node.token_selection.base import inverse_norms
import torch
from torch import Tensor

MAX_GRAPHS = 4
"""Number of cached graphs. A new retention ratio or number of cameras needs a new graph."""


def equality_threshold(hidden: int) -> float:
    """Return the float32 similarity above which two tokens count as equal.

    Above it, 1 - cosine is rounding noise, a random walk over the hidden dimension, and equal
    tokens would not tie. Such similarities are rounded to 1, so that ties go to the lowest index.
    """
    return float(1.0 - 2.0**-24 * hidden**0.5)


def initial_maxima(usable: Tensor) -> Tensor:
    """Return the initial value of each token's largest similarity to a pick.

    It is -inf for usable tokens. It is 1 for tokens with NaN or infinity, as if they were equal to
    a pick, so that they are picked last.

    Args:
        usable: Bool [views, tokens].

    Returns:
        Float32 [views, tokens].
    """
    return torch.where(usable, -torch.inf, 1.0)


def batched_order(visual_tokens: Tensor, num_picks: int) -> Tensor:
    """Return the picks of all views in their order.

    Args:
        visual_tokens: Float [views, tokens, hidden], any device.
        num_picks: Number of picks per view, in [1, tokens).

    Returns:
        Int64 [views, num_picks], on the tokens' device.
    """
    inverse, usable = inverse_norms(visual_tokens)
    scale = inverse[:, :, None]
    unit = torch.where(scale > 0, visual_tokens.float() * scale, 0.0)
    with disable_tf32():
        similarity = torch.bmm(unit, unit.transpose(1, 2))
    similarity = torch.where(similarity > equality_threshold(unit.shape[2]), 1.0, similarity)
    similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return _pick(similarity, initial_maxima(usable), num_picks)


def _pick(similarity: Tensor, initial: Tensor, num_picks: int) -> Tensor:
    """Pick greedily.

    Args:
        similarity: Float32 [views, tokens, tokens], -inf on the diagonal.
        initial: Float32 [views, tokens], from `initial_maxima`.
        num_picks: Number of picks per view.

    Returns:
        Int64 [views, num_picks].
    """
    num_views, num_tokens = initial.shape
    device = similarity.device
    rows = similarity.view(num_views * num_tokens, num_tokens)
    first_row = torch.arange(0, num_views * num_tokens, num_tokens, device=device)
    order = torch.empty(num_picks, num_views, dtype=torch.int64, device=device)
    pick = torch.maximum(similarity.amax(dim=1), initial).argmin(dim=1)
    to_picks = initial.clone()  # largest similarity to a pick; inf for picks
    for step in range(num_picks):
        order[step] = pick
        torch.maximum(to_picks, rows[first_row + pick], out=to_picks)
        to_picks.scatter_(1, pick[:, None], torch.inf)
        pick = to_picks.argmin(dim=1)
    return order.T.contiguous()


@contextmanager
def disable_tf32() -> Iterator[None]:
    """Compute matrix products in full float32: TF32's 10-bit mantissa changes the picks."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32 = before


class CudaGraphs:
    """Runs `batched_order` as CUDA graphs, one per shape. Use it from one thread at a time.

    The first call with a shape captures its graph, which takes some hundred milliseconds.
    """

    def __init__(self) -> None:
        self._graphs: dict[tuple[object, ...], _Graph] = {}

    def order(self, visual_tokens: Tensor, num_picks: int) -> Tensor:
        """Return the result of `batched_order` in a new tensor."""
        key = (visual_tokens.shape, visual_tokens.dtype, visual_tokens.device, num_picks)
        if key not in self._graphs:
            while len(self._graphs) >= MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[key] = _Graph(visual_tokens, num_picks)
        return self._graphs[key].replay(visual_tokens)


class _Graph:
    """One captured graph with its input and output buffers."""

    def __init__(self, visual_tokens: Tensor, num_picks: int) -> None:
        self._tokens = visual_tokens.clone(memory_format=torch.contiguous_format)
        stream = torch.cuda.Stream(visual_tokens.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(visual_tokens.device))
        with torch.cuda.stream(stream):  # warm-up: cuBLAS must be initialised before capture
            batched_order(self._tokens, num_picks)
        torch.cuda.current_stream(visual_tokens.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._order = batched_order(self._tokens, num_picks)

    def replay(self, visual_tokens: Tensor) -> Tensor:
        self._tokens.copy_(visual_tokens)
        self._graph.replay()
        return self._order.clone()
