"""Adaptive allocation: one token budget for all cameras, split anew for each sweep.

This goes beyond the paper, which has a fixed retention ratio per camera. The coverage of a view is
the largest distance of any of its tokens to the nearest kept one. T-FPS picks the farthest token,
so the distance of a pick to the earlier picks is the coverage before it. Taking the picks of all
views in descending order of that distance minimises, pick by pick, the largest distance in the
sweep. A street scene then gets more tokens than an empty wall.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2d_node.token_selection.tfps import TfpsSelector
import torch
from torch import Tensor


def select_adaptively(
    batches: Sequence[Tensor],
    num_keep: Sequence[int],
    weights: Sequence[float],
    tfps: TfpsSelector | None = None,
) -> list[Tensor]:
    """Choose `sum(num_keep)` tokens by T-FPS, from the views whose coverage they improve most.

    Args:
        batches: Float [views, tokens, hidden] each; together they hold all views, in order.
        num_keep: Per view the number of tokens that a fixed split would keep, in [1, tokens].
        weights: Per view the factor of its distances, above 0.
        tfps: The selector for all batches; None creates one.

    Returns:
        As `keep_by_coverage`.

    Raises:
        InferenceError: As `select_tokens`.
    """
    budget = sum(num_keep)
    max_picks = budget - len(num_keep) + 1  # every other view keeps at least one token
    tfps = tfps or TfpsSelector()
    orders = [tfps.order(batch, min(batch.shape[1], max_picks)) for batch in batches]
    return keep_by_coverage(
        [view for order in orders for view in order.indices],
        [view for order in orders for view in order.distances],
        budget,
        weights,
    )


def keep_by_coverage(
    indices: Sequence[Tensor], distances: Sequence[Tensor], num_keep: int, weights: Sequence[float]
) -> list[Tensor]:
    """Keep the `num_keep` picks that improve the coverage of their views most.

    Synchronises with the device once, to read the counts.

    Args:
        indices: Per view the picks of T-FPS in their order, int64 [picks].
        distances: Per view `TokenOrder.distances`, float32 [picks], descending.
        num_keep: Total over all views, in [views, total number of picks].
        weights: Per view the factor of its distances, above 0.

    Returns:
        Per view the kept indices, int64, ascending, at least one; `num_keep` in total.
    """
    gains = torch.cat([view * weight for view, weight in zip(distances, weights, strict=True)])
    sizes = torch.tensor([len(view) for view in distances], device=gains.device)
    owner = torch.arange(len(sizes), device=gains.device).repeat_interleave(
        sizes, output_size=len(gains)
    )
    # Stable: ties go to the first view, and within a view to the earlier pick.
    best = gains.argsort(descending=True, stable=True)[:num_keep]
    counts = torch.bincount(owner[best], minlength=len(sizes)).tolist()
    return [view[:count].sort().values for view, count in zip(indices, counts, strict=True)]
