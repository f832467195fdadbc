"""T-FPS, token-wise farthest point sampling (Prune2Drive, arXiv 2508.13305, section 3.2).

Per view, on L2-normalised tokens with distance 1 - cosine: the first pick is the token whose
nearest neighbour is farthest away; each next pick is the token farthest from all picks so far.
Ties go to the lowest index. Distances are float32 whatever the model computes in: half-precision
distances change the picks.

All code here works on similarities (cosines) instead of distances: the farthest token is the one
whose highest similarity to a pick is lowest, and 1 - cosine would only add a rounding. A zero
vector has similarity 0 to everything. Three ways compute the same rule:
`tfps_exact` on a CPU, `tfps_triton` on a GPU where Triton compiles, `tfps_batched` elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
import importlib.util
import logging
import math

from p2d_node.token_selection.base import check_selection_input, inverse_norms
from p2d_node.token_selection.tfps_batched import batched_order, CudaGraphs, full_float32
from p2d_node.token_selection.tfps_exact import exact_orders
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Order = Callable[[Tensor, int], Tensor]
"""Tokens [views, tokens, hidden] and a count -> picks in order, int64 [views, count]."""


@dataclass(frozen=True, slots=True)
class TokenOrder:
    """The picks of T-FPS in their order; the first n of a view are its picks for every count n.

    Attributes:
        indices: Int64 [views, picks].
        distances: Float32 [views, picks], 1 - cosine to the nearest earlier pick, falling along
            each view: what the pick adds to the coverage of its view. Infinity for the first.
    """

    indices: Tensor
    distances: Tensor


class TfpsSelector:
    """Keeps the most diverse tokens of each view.

    Used by one thread at a time: where Triton does not run, it keeps CUDA graphs and their input
    buffers between calls. On a GPU no call waits for the device, and NaN or infinite tokens do
    not raise: they are picked after all others (`base.require_finite` asks for the error). On a
    CPU they raise `InferenceError`.
    """

    def __init__(self) -> None:
        self._graphs = CudaGraphs()

    def select(self, visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
        """Choose per view; see `TokenSelector.select`."""
        check_selection_input(visual_tokens, num_keep)
        tokens = visual_tokens.detach()
        num_tokens = tokens.shape[1]
        # Keeping all needs no search; such a view must not make the others' search longer.
        search = [0 if count == num_tokens else count for count in num_keep]
        kept = self._search(tokens, search) if any(search) else [tokens] * len(search)
        everything = torch.arange(num_tokens, device=tokens.device)
        return [found if count else everything for found, count in zip(kept, search, strict=True)]

    def order(self, visual_tokens: Tensor, num_picks: int) -> TokenOrder:
        """Pick `num_picks` tokens of every view, in [1, tokens]; see `TokenOrder`."""
        num_views, num_tokens, _ = visual_tokens.shape
        check_selection_input(visual_tokens, [num_picks] * num_views)
        tokens = visual_tokens.detach()
        # The last token is the one that is left; the search wants something to choose from.
        searched = max(1, min(num_picks, num_tokens - 1))
        indices = self._order(tokens, searched) if num_tokens > 1 else _only_token(tokens)
        if num_picks > searched:
            left = num_tokens * (num_tokens - 1) // 2 - indices.sum(dim=1, keepdim=True)
            indices = torch.cat([indices, left], dim=1)
        return TokenOrder(indices, _pick_distances(tokens, indices))

    def _order(self, tokens: Tensor, num_picks: int) -> Tensor:
        if tokens.device.type == 'cpu':
            return torch.stack(exact_orders(tokens, [num_picks] * len(tokens)))
        return self._device_order(tokens.device)(tokens, num_picks)

    def _search(self, tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
        if tokens.device.type == 'cpu':
            orders = exact_orders(tokens, num_keep)
            return [order.sort().values for order in orders]
        order = self._device_order(tokens.device)(tokens, max(num_keep))
        return ascending_indices(order, num_keep, tokens.shape[1])

    def _device_order(self, device: torch.device) -> Order:
        if device.type != 'cuda':
            return batched_order
        if triton_runs(device):
            from p2d_node.token_selection.tfps_triton import triton_order

            return triton_order
        return self._graphs.order


def _only_token(tokens: Tensor) -> Tensor:
    return torch.zeros(len(tokens), 1, dtype=torch.int64, device=tokens.device)


def _pick_distances(tokens: Tensor, indices: Tensor) -> Tensor:
    """Return `TokenOrder.distances` of picks [views, picks]."""
    picked = tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1])).float()
    inverse, _ = inverse_norms(picked)
    unit = torch.where(inverse[..., None] > 0, picked * inverse[..., None], 0.0)
    with full_float32():
        similarity = torch.bmm(unit, unit.transpose(1, 2))
    before = torch.ones_like(similarity, dtype=torch.bool).tril(-1)
    distances = (1.0 - similarity).masked_fill(~before, math.inf).amin(dim=-1).clamp(min=0.0)
    # Distances of farthest points never grow; float32 may say so by a rounding.
    return distances.cummin(dim=1).values


def ascending_indices(order: Tensor, num_keep: Sequence[int], num_tokens: int) -> list[Tensor]:
    """Cut the picks of each view at its count and sort them, without leaving the device.

    The picks are greedy, so the first n of them are the picks for count n.

    Args:
        order: Int64 [views, picks], in order of picking; overwritten.
        num_keep: Per view how many of them stay, each in [0, picks].
        num_tokens: Number of tokens per view.

    Returns:
        Per view int64 [num_keep[v]], ascending: slices of one tensor.
    """
    for view, count in enumerate(num_keep):
        order[view, count:].fill_(num_tokens)
    ascending = order.sort(dim=1).values
    return [ascending[view, :count] for view, count in enumerate(num_keep)]


@lru_cache(maxsize=16)
def triton_runs(device: torch.device) -> bool:
    """Tell, by running it once, whether Triton's kernels compile and run on `device`."""
    if importlib.util.find_spec('triton') is None:
        logger.info('Triton is not installed: T-FPS runs as a CUDA graph')
        return False
    try:
        from p2d_node.token_selection.tfps_triton import triton_order

        probe = torch.eye(4, 16, device=device)[None]
        torch.cuda.synchronize(triton_order(probe, 2).device)
    except Exception as err:  # a compiler's faults have no common class, and there is a fallback
        logger.warning('Triton does not run here, T-FPS runs as a CUDA graph: %s', err)
        return False
    return True
