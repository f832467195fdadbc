"""One budget of visual tokens for all cameras, split anew for every sweep.

Beyond the paper, whose retention ratios are fixed per camera. T-FPS picks farthest points: the
distance of a pick to the earlier ones is how much the worst covered token of its view gains by it.
Taking the picks of all views in the order of that gain spends the budget where a sweep has most to
show: a street scene gets tokens that an empty wall would waste. This minimises, pick by pick, the
largest distance of any token of the sweep to the nearest kept token of its view.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2d_node.token_selection.factory import order_tokens
import torch
from torch import Tensor


def select_adaptively(
    batches: Sequence[Tensor], num_keep: Sequence[int], weights: Sequence[float]
) -> list[Tensor]:
    """Choose by T-FPS as many tokens as `num_keep` has in all, wherever they add most.

    Args:
        batches: Float [views, tokens, hidden]; together they hold all views, in order.
        num_keep: Per view what a fixed split would keep, in [1, tokens].
        weights: Per view how much a distance counts, above 0.

    Returns:
        As `keep_by_coverage`.

    Raises:
        InferenceError: As `select_tokens`.
    """
    budget = sum(num_keep)
    most = budget - len(num_keep) + 1  # every other view keeps one token at least
    orders = [order_tokens(batch, min(batch.shape[1], most)) for batch in batches]
    return keep_by_coverage(
        [view for order in orders for view in order.indices],
        [view for order in orders for view in order.distances],
        budget,
        weights,
    )


def keep_by_coverage(
    indices: Sequence[Tensor], distances: Sequence[Tensor], num_keep: int, weights: Sequence[float]
) -> list[Tensor]:
    """Keep `num_keep` tokens, split over the views by what each pick adds to its view's coverage.

    Waits for the device once, as the counts shape what follows.

    Args:
        indices: Per view the picks of T-FPS in their order, int64 [picks].
        distances: Per view `TokenOrder.distances`, float32 [picks], falling.
        num_keep: Tokens of all views together, from one per view to all picks there are.
        weights: Per view how much a distance counts, above 0.

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
