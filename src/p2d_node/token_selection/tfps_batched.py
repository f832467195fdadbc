"""T-FPS as one batch of plain torch operations on any device, and captured in a CUDA graph.

Visual tokens [views, tokens, hidden] come in, picks int64 [views, picks] in their order go out.
Nothing here waits for the device. For GPUs where Triton does not run (some Jetson set-ups) a CUDA
graph removes the launch cost of the few small kernels per pick.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from p2d_node.token_selection.base import inverse_norms
import torch
from torch import Tensor

MAX_GRAPHS = 4
"""Captured shapes that are kept; a new retention ratio or camera count captures a new one."""


def equal_above(hidden: int) -> float:
    """Return the float32 similarity from which two tokens count as equal.

    Above it, 1 - cosine is only rounding noise (a random walk over the hidden dimension), and
    equal tokens would not tie; so it is rounded to 1 and ties go to the lowest index.
    """
    return float(1.0 - 2.0**-24 * hidden**0.5)


def start_values(usable: Tensor) -> Tensor:
    """Return where each token's running maximum of similarities starts.

    Nothing (-inf) for usable tokens; 1, equal to a pick, for tokens with NaN or infinity, so that
    they are picked after all others.

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
        num_picks: How many tokens to pick per view, in [1, tokens).

    Returns:
        Int64 [views, num_picks], on the tokens' device.
    """
    inverse, usable = inverse_norms(visual_tokens)
    scale = inverse[:, :, None]
    unit = torch.where(scale > 0, visual_tokens.float() * scale, 0.0)
    with full_float32():
        similarity = torch.bmm(unit, unit.transpose(1, 2))
    similarity = torch.where(similarity > equal_above(unit.shape[2]), 1.0, similarity)
    similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return _pick(similarity, start_values(usable), num_picks)


def _pick(similarity: Tensor, start: Tensor, num_picks: int) -> Tensor:
    """Pick greedily from similarity [views, tokens, tokens] with -inf on its diagonal."""
    num_views, num_tokens = start.shape
    device = similarity.device
    rows = similarity.view(num_views * num_tokens, num_tokens)
    first_row = torch.arange(0, num_views * num_tokens, num_tokens, device=device)
    order = torch.empty(num_picks, num_views, dtype=torch.int64, device=device)
    pick = torch.maximum(similarity.amax(dim=1), start).argmin(dim=1)
    closest = start.clone()
    for step in range(num_picks):
        order[step] = pick
        torch.maximum(closest, rows[first_row + pick], out=closest)
        closest.scatter_(1, pick[:, None], torch.inf)
        pick = closest.argmin(dim=1)
    return order.T.contiguous()


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep TF32 out of matrix products: its 10-bit mantissa changes the picks."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32 = before


class CudaGraphs:
    """Runs `batched_order` as CUDA graphs, one per shape; for one thread at a time.

    The first call with a shape captures its graph, which takes some hundred milliseconds.
    """

    def __init__(self) -> None:
        self._graphs: dict[tuple[object, ...], _Graph] = {}

    def order(self, visual_tokens: Tensor, num_picks: int) -> Tensor:
        """Return what `batched_order` returns, in a tensor of its own."""
        key = (visual_tokens.shape, visual_tokens.dtype, visual_tokens.device, num_picks)
        if key not in self._graphs:
            while len(self._graphs) >= MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[key] = _Graph(visual_tokens, num_picks)
        return self._graphs[key].replay(visual_tokens)


class _Graph:
    """One captured graph with the buffers it reads and writes."""

    def __init__(self, visual_tokens: Tensor, num_picks: int) -> None:
        self._tokens = visual_tokens.clone(memory_format=torch.contiguous_format)
        stream = torch.cuda.Stream(visual_tokens.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(visual_tokens.device))
        with torch.cuda.stream(stream):  # cuBLAS sets itself up before it may be captured
            batched_order(self._tokens, num_picks)
        torch.cuda.current_stream(visual_tokens.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._order = batched_order(self._tokens, num_picks)

    def replay(self, visual_tokens: Tensor) -> Tensor:
        self._tokens.copy_(visual_tokens)
        self._graph.replay()
        return self._order.clone()
