"""T-FPS, token-wise farthest point sampling (Prune2Drive, arXiv 2508.13305, section 3.2).

Per view, on L2-normalised tokens with distance 1 - cosine: the first pick is the token whose
nearest neighbour is farthest away; each next pick is the token farthest from all picks so far.
Ties go to the lowest index. Distances are float32 whatever the model computes in: half-precision
distances change the picks.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2d_node.token_selection.base import check_selection_input
import torch
from torch import Tensor


class TfpsSelector:
    """Keeps the most diverse tokens of each view."""

    def select(self, visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
        """Choose per view; see `TokenSelector.select`."""
        check_selection_input(visual_tokens, num_keep)
        return [
            _select_view(tokens, count)
            for tokens, count in zip(visual_tokens, num_keep, strict=True)
        ]


def _select_view(tokens: Tensor, num_keep: int) -> Tensor:
    """Run T-FPS on one view [tokens, hidden]; returns int64 [num_keep], ascending."""
    unit = torch.nn.functional.normalize(tokens.float(), dim=-1)
    distance = 1.0 - unit @ unit.T
    distance.fill_diagonal_(torch.inf)
    picks = torch.empty(num_keep, dtype=torch.int64, device=tokens.device)
    pick = distance.amin(dim=1).argmax()
    to_picks = torch.full((len(tokens),), torch.inf, device=tokens.device)
    for step in range(num_keep):
        picks[step] = pick
        to_picks = torch.minimum(to_picks, distance[pick])
        to_picks[pick] = -torch.inf
        pick = to_picks.argmax()
    return picks.sort().values
