"""Baseline: DART, Duplication-Aware Reduction of Tokens (arXiv 2502.11494), per view.

The tokens with the largest L1 norm are the pivots of a view. They are kept. One pivot after the
other, in descending order of norm, then keeps the tokens that resemble it least: those with the
lowest cosine similarity to it that are not kept yet. Ties go to the lowest index.

This is the variant of NVIDIA's TensorRT Edge-LLM: a quota per view, norms and cosines of the
features that enter the language model, and equal shares of the quota for the pivots. The paper
takes the norms of the attention keys of decoder layer 2, and all views are one sequence. Both have
four more pivots among the tokens of the text. A selector here sees visual tokens only, so that
there are none.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2d_node.token_selection.base import check_selection_input, inverse_norms, require_usable
import torch
from torch import Tensor

NUM_PIVOTS = 4
"""Pivots per view: the default of the published code and of the runtime for pictures."""

STEPS = 2.0**30
"""Cosines are compared in steps of 1 / STEPS, so that copies of a token tie."""


class DartSelector:
    """Keeps tokens of large norm, and those that least resemble them. Any thread may call it.

    Cosines are float64. On a GPU no call waits for the device, and NaN or infinite tokens are
    picked last, without an error. On a CPU they raise `InferenceError`.
    """

    def select(self, visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
        """Choose per view; see `TokenSelector.select`."""
        check_selection_input(visual_tokens, num_keep)
        tokens = visual_tokens.detach()
        num_tokens = tokens.shape[1]
        if all(count == num_tokens for count in num_keep):  # the values are not read
            return [torch.arange(num_tokens, device=tokens.device) for _ in num_keep]
        inverse, usable = inverse_norms(tokens)
        if tokens.device.type == 'cpu':
            require_usable(usable)
        views = zip(tokens, usable, inverse > 0, num_keep, strict=True)
        return [_select_view(*view) for view in views]


def _select_view(tokens: Tensor, usable: Tensor, has_direction: Tensor, num_keep: int) -> Tensor:
    """Choose in one view.

    Args:
        tokens: Float [tokens, hidden].
        usable: Bool [tokens], False for NaN, infinity and very large norms.
        has_direction: Bool [tokens], False also for zero vectors.
        num_keep: In [1, tokens].

    Returns:
        Int64 [num_keep], ascending.
    """
    tokens = tokens.double()
    size = tokens.abs().sum(dim=-1).masked_fill(~usable, -1.0)
    pivots = size.argsort(descending=True, stable=True)[: min(NUM_PIVOTS, num_keep)]
    similarity = _similarity_to(tokens, pivots, has_direction)
    similarity = torch.where(usable, (similarity * STEPS).round(), 2.0 * STEPS)
    similarity.index_fill_(1, pivots, torch.inf)
    chosen = [pivots]
    left = num_keep - len(pivots)
    for row in range(len(pivots)):
        share = -(-left // (len(pivots) - row))
        chosen.append(similarity[row].argsort(stable=True)[:share])
        similarity.index_fill_(1, chosen[-1], torch.inf)
        left -= share
    return torch.cat(chosen).sort().values


def _similarity_to(tokens: Tensor, pivots: Tensor, has_direction: Tensor) -> Tensor:
    """Return the cosine of each pivot with each token, float64 [pivots, tokens]; 0 without one."""
    norms = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
    unit = torch.where(has_direction[:, None], tokens / norms, 0.0)
    return unit[pivots] @ unit.T
