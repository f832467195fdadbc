"""Baseline: DivPrune (CVPR 2025), the greedy rule of T-FPS over all views at once."""

from __future__ import annotations

from collections.abc import Sequence

from p2d_node.token_selection.base import check_selection_input
from p2d_node.token_selection.tfps import TfpsSelector
import torch
from torch import Tensor


class DivPruneSelector:
    """Keeps the most diverse tokens of the whole sweep. Use it from one thread at a time.

    It keeps `sum(num_keep)` tokens in total. The number per view differs from `num_keep[v]` and
    may be 0. On a GPU every call waits for the device once, to read these numbers.
    """

    def __init__(self) -> None:
        self._tfps = TfpsSelector()

    def select(self, visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
        """Choose over all views; per view int64, ascending, `sum(num_keep)` in total."""
        check_selection_input(visual_tokens, num_keep)
        num_views, num_tokens, _ = visual_tokens.shape
        (kept,) = self._tfps.select(visual_tokens.flatten(0, 1)[None], [sum(num_keep)])
        counts = torch.bincount(kept // num_tokens, minlength=num_views).tolist()
        return list(torch.split(kept % num_tokens, counts))
