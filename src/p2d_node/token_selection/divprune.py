"""Baseline: DivPrune (CVPR 2025), the same greedy rule over the tokens of all views at once."""

from __future__ import annotations

from collections.abc import Sequence

from p2d_node.token_selection.base import check_selection_input
from p2d_node.token_selection.tfps import TfpsSelector
import torch
from torch import Tensor


class DivPruneSelector:
    """Keeps the most diverse tokens of the whole sweep; for one thread at a time.

    The total is the sum of the counts, but how many fall on each view is the rule's own outcome:
    `num_keep[v]` is not kept to, and a view may keep nothing. On a GPU every call waits for the
    device once, to learn the counts.
    """

    def __init__(self) -> None:
        self._tfps = TfpsSelector()

    def select(self, visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
        """Choose over all views; per view int64, ascending, `sum(num_keep)` in all."""
        check_selection_input(visual_tokens, num_keep)
        num_views, num_tokens, _ = visual_tokens.shape
        (kept,) = self._tfps.select(visual_tokens.flatten(0, 1)[None], [sum(num_keep)])
        counts = torch.bincount(kept // num_tokens, minlength=num_views).tolist()
        return list(torch.split(kept % num_tokens, counts))
