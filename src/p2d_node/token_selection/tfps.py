"""T-FPS, token-wise farthest point sampling (Prune2Drive, arXiv 2508.13305, section 3.2).

Per view, on L2-normalised tokens with distance 1 - cosine: the first pick is the token whose
nearest neighbour is farthest away. Each next pick is the token that is farthest from all picks so
far. Ties go to the lowest index. The published code computes distances in the model's format; here
they are float32 or better, because half precision changes the picks.

The code uses similarities (cosines) instead of distances, which saves a rounding: the farthest
token is the one whose largest similarity to a pick is smallest. A zero vector has similarity 0 to
every token. There are three implementations: `tfps_exact` for CPUs, `tfps_triton` for GPUs with
Triton, and `tfps_batched` for all other devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
import importlib.util
import logging
import math

from p2d_node.token_selection.base import check_selection_input, inverse_norms
from p2d_node.token_selection.tfps_batched import batched_order, CudaGraphs, disable_tf32
from p2d_node.token_selection.tfps_exact import exact_orders
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

OrderFunction = Callable[[Tensor, int], Tensor]
"""Maps tokens [views, tokens, hidden] and a count to picks in order, int64 [views, count]."""


@dataclass(frozen=True, slots=True)
class TokenOrder:
    """The picks of T-FPS in their order. The first n of a view are its picks for count n.

    Attributes:
        indices: Int64 [views, picks].
        distances: Float32 [views, picks], 1 - cosine to the nearest earlier pick, descending per
            view; infinity for the first pick.
    """

    indices: Tensor
    distances: Tensor


class TfpsSelector:
    """Keeps the most diverse tokens of each view.

    Use it from one thread at a time: on GPUs without Triton it keeps CUDA graphs and their input
    buffers between calls. On a GPU no call waits for the device, and NaN or infinite tokens are
    picked last, without an error; `base.require_finite` checks for them. On a CPU they raise
    `InferenceError`.
    """

    def __init__(self) -> None:
        self._graphs = CudaGraphs()

    def select(self, visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
        """Choose per view; see `TokenSelector.select`."""
        check_selection_input(visual_tokens, num_keep)
        tokens = visual_tokens.detach()
        num_tokens = tokens.shape[1]
        # Views that keep all their tokens are not searched: the longest search sets the time.
        counts = [0 if count == num_tokens else count for count in num_keep]
        kept = self._search(tokens, counts) if any(counts) else [tokens] * len(counts)
        all_indices = torch.arange(num_tokens, device=tokens.device)
        return [
            indices if count else all_indices for indices, count in zip(kept, counts, strict=True)
        ]

    def order(self, visual_tokens: Tensor, num_picks: int) -> TokenOrder:
        """Return the first `num_picks` picks of each view, in [1, tokens]; see `order_tokens`."""
        num_views, num_tokens, _ = visual_tokens.shape
        check_selection_input(visual_tokens, [num_picks] * num_views)
        tokens = visual_tokens.detach()
        if num_tokens == 1:
            indices = torch.zeros(num_views, 1, dtype=torch.int64, device=tokens.device)
            return TokenOrder(indices, _pick_distances(tokens, indices))
        # The search picks fewer than all tokens. The last pick is the remaining token.
        num_searched = min(num_picks, num_tokens - 1)
        indices = self._order(tokens, num_searched)
        if num_picks > num_searched:
            remaining = num_tokens * (num_tokens - 1) // 2 - indices.sum(dim=1, keepdim=True)
            indices = torch.cat([indices, remaining], dim=1)
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

    def _device_order(self, device: torch.device) -> OrderFunction:
        if device.type != 'cuda':
            return batched_order
        if triton_runs(device):
            from p2d_node.token_selection.tfps_triton import triton_order

            return triton_order
        return self._graphs.order


def _pick_distances(tokens: Tensor, indices: Tensor) -> Tensor:
    """Return `TokenOrder.distances` of `indices`, int64 [views, picks]."""
    picked = tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1])).float()
    inverse, _ = inverse_norms(picked)
    unit = torch.where(inverse[..., None] > 0, picked * inverse[..., None], 0.0)
    with disable_tf32():
        similarity = torch.bmm(unit, unit.transpose(1, 2))
    is_earlier = torch.ones_like(similarity, dtype=torch.bool).tril(-1)
    distances = (1.0 - similarity).masked_fill(~is_earlier, math.inf).amin(dim=-1).clamp(min=0.0)
    # Exact distances never increase; float32 distances can, by a rounding.
    return distances.cummin(dim=1).values


def ascending_indices(order: Tensor, num_keep: Sequence[int], num_tokens: int) -> list[Tensor]:
    """Sort the first `num_keep[v]` picks of each view, without synchronisation.

    The picks are greedy, so the first n of them are the picks for count n.

    Args:
        order: Int64 [views, picks], in the order of picking; overwritten.
        num_keep: Per view the number of picks to keep, in [0, picks].
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
    """Return whether the Triton kernels compile and run on `device`; runs them once."""
    if importlib.util.find_spec('triton') is None:
        logger.info('Triton is not installed; T-FPS uses a CUDA graph')
        return False
    try:
        from p2d_node.token_selection.tfps_triton import triton_order

        probe = torch.eye(4, 16, device=device)[None]
        torch.cuda.synchronize(triton_order(probe, 2).device)
    except Exception as err:  # compiler errors have no common base class
        logger.warning('Triton failed, T-FPS uses a CUDA graph: %s', err)
        return False
    return True
