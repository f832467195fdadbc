"""Baseline: random tokens, the same ones in every sweep."""

from __future__ import annotations

from collections.abc import Sequence

from p2d_node.token_selection.base import check_selection_input
import torch
from torch import Tensor


class RandomSelector:
    """Keeps a random subset of each view; does not read features.

    Attributes:
        seed: Seed of every call: equal shapes and counts give equal indices, on every device.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def select(self, visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
        """Choose per view; see `TokenSelector.select`."""
        check_selection_input(visual_tokens, num_keep)
        generator = torch.Generator().manual_seed(self.seed)
        num_tokens = visual_tokens.shape[1]
        drawn = [torch.randperm(num_tokens, generator=generator)[:count] for count in num_keep]
        return [indices.sort().values.to(visual_tokens.device) for indices in drawn]
