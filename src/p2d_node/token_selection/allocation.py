"""Adaptive allocation: one budget of visual tokens for all cameras, split for each sweep.

This goes beyond the paper, whose retention ratios are fixed per camera. T-FPS picks farthest
points: the distance of a pick to the earlier picks is what the worst covered token of its view
gains from it. Taking the picks of all views in descending order of that gain minimises, pick by
pick, the largest distance of any token of the sweep to the nearest kept token of its view. A
street scene then gets tokens that an empty wall does not need.
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
    """Choose `sum(num_keep)` tokens by T-FPS, in the views where they improve coverage most.

    Args:
        batches: Float [views, tokens, hidden]; together they hold all views, in order.
        num_keep: Per view what a fixed split would keep, in [1, tokens].
        weights: Per view the factor of its distances, above 0.
        tfps: Used for all batches; None: a new one.

    Returns:
        As `keep_by_coverage`.

    Raises:
        InferenceError: As `select_tokens`.
    """
    budget = sum(num_keep)
    most = budget - len(num_keep) + 1  # every other view keeps at least one token
    tfps = tfps or TfpsSelector()
    orders = [tfps.order(batch, min(batch.shape[1], most)) for batch in batches]
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

    Synchronises with the device once, to learn the counts.

    Args:
        indices: Per view the picks of T-FPS in their order, int64 [picks].
        distances: Per view `TokenOrder.distances`, float32 [picks], falling.
        num_keep: Tokens of all views together, from one per view to all picks there are.
        weights: Per view the factor of its distances, above 0.

    Returns:
        Per view the kept indices, int64, ascending; one or more each, `num_keep` together.
    """
    gains = torch.cat([view * weight for view, weight in zip(distances, weights, strict=True)])
    sizes = torch.tensor([len(view) for view in distances], device=gains.device)
    owner = torch.arange(len(sizes), device=gains.device).repeat_interleave(
        sizes, output_size=len(gains)
    )
    # Stable: of equal gains the first view's come first, and within a view the earlier pick's.
    best = gains.argsort(descending=True, stable=True)[:num_keep]
    counts = torch.bincount(owner[best], minlength=len(sizes)).tolist()
    return [view[:count].sort().values for view, count in zip(indices, counts, strict=True)]
