"""T-FPS on a CPU: float32 does the work, float64 decides where float32 cannot tell.

Visual tokens [views, tokens, hidden] come in, the picks of each view in their order go out, equal
to those of a float64 computation from the formula.

1. One float32 similarity matrix per view; it is symmetric, so only strips right of the diagonal
   are computed and mirrored (about 5/8 of the arithmetic of the full product).
2. All views advance together, each with a running maximum of its similarity to the picks.
3. Where other tokens lie within float32's error of the best one, the few pairs that can matter
   are computed again in float64. A view that has very many of them (equal or nearly equal
   tokens) is computed in float64 as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from p2d_node.token_selection.base import inverse_norms, require_usable
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

TIE = 2.0**-45
"""Cosines closer than this are equal: some float64 roundings of a sum over thousands of terms."""

FLOAT32_ROUNDING = 2.0**-24

NUM_STRIPS = 4
"""Strips per similarity matrix: more save arithmetic (at most half), but make slower products."""

PAIR_BUDGET = 1024
"""Pairs per view that are computed again one by one; past that, all at once is cheaper."""


def exact_orders(visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
    """Return the picks of each view in their order.

    Args:
        visual_tokens: Float [views, tokens, hidden] on the CPU, two or more tokens.
        num_keep: Per view how many tokens to pick, each in [0, tokens).

    Returns:
        Per view int64 [num_keep[v]].

    Raises:
        InferenceError: A token holds NaN or infinity.
    """
    inverse, usable = inverse_norms(visual_tokens)
    require_usable(usable)
    exact = visual_tokens.dtype == torch.float64  # float16 and bfloat16 fit into float32
    greedy = _Greedy(visual_tokens if exact else visual_tokens.float(), inverse, num_keep)
    greedy.run()
    return [torch.from_numpy(picks) for picks in greedy.picks()]


def similarity_matrices(visual_tokens: Tensor, inverse: Tensor) -> Tensor:
    """Return the cosines between the tokens of each view.

    Args:
        visual_tokens: Float [views, tokens, hidden] on the CPU.
        inverse: 1 / norm of each token, float32 [views, tokens].

    Returns:
        Float32 [views, tokens, tokens].
    """
    tokens = visual_tokens.float()
    num_views, num_tokens, _ = tokens.shape
    similarity = torch.empty(num_views, num_tokens, num_tokens)
    width = -(-num_tokens // NUM_STRIPS)
    for start in range(0, num_tokens, width):
        stop = min(start + width, num_tokens)
        strip = torch.bmm(tokens[:, start:stop], tokens[:, start:].transpose(1, 2))
        own = similarity[:, start:stop, start:]
        torch.mul(strip.mul_(inverse[:, None, start:]), inverse[:, start:stop, None], out=own)
        similarity[:, stop:, start:stop] = own[:, :, stop - start :].transpose(1, 2)
    return similarity


def similarity_error(similarity: Tensor, inverse: Tensor, hidden: int) -> Tensor:
    """Estimate per view how far float32 cosines are from the true ones.

    The cosine of a token with itself is 1, and no pair has larger partial sums to round: four
    times the worst error seen there is taken, as the errors of a token's norm and of its product
    with itself can partly cancel. It is never less than sixteen roundings, which norms and
    products can add up to, and half of sqrt(hidden) more, as a sum's roundings walk randomly.
    Products in reduced precision (a global setting of torch) show up here too, and then more is
    computed again in float64.

    Args:
        similarity: Float32 [views, tokens, tokens], diagonal included.
        inverse: Float32 [views, tokens], 0 for zero vectors.
        hidden: Number of features.

    Returns:
        Float32 [views].
    """
    own = similarity.diagonal(dim1=1, dim2=2)
    seen = torch.where(inverse > 0, own - 1.0, 0.0).abs().amax(dim=1)
    return (4.0 * seen).clamp(min=(16.0 + 0.5 * hidden**0.5) * FLOAT32_ROUNDING)


class _Greedy:
    """The greedy search over all views of one sweep; views with more picks come first."""

    def __init__(self, tokens: Tensor, inverse: Tensor, num_keep: Sequence[int]) -> None:
        self._tokens, self._inverse = tokens, inverse
        num_views, num_tokens, hidden = tokens.shape
        similarity = similarity_matrices(tokens, inverse)
        error = similarity_error(similarity, inverse, hidden)
        similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        self._views = np.argsort(-np.asarray(num_keep), kind='stable')
        self._num_keep = np.asarray(num_keep)[self._views]
        # Two cosines, each off by `error` at most, compare wrongly within twice of it.
        self._window = 2.0 * error.numpy()[self._views]
        self._similarity: Floats = similarity.numpy().reshape(num_views * num_tokens, num_tokens)
        self._first_row = self._views * num_tokens
        self._nearest: Floats = similarity.amax(dim=1).numpy()[self._views]
        self._picks: Indices = np.empty((num_views, max(num_keep)), dtype=np.int64)
        self._pairs_left = np.full(num_views, PAIR_BUDGET)

    def run(self) -> None:
        """Pick for all views, one pick per view and step."""
        closest = np.full_like(self._nearest, -np.inf)
        for step in range(self._picks.shape[1]):
            active = int(np.count_nonzero(self._num_keep > step))
            lanes = np.arange(active)
            score = (closest if step else self._nearest)[:active]
            chosen = score.argmin(axis=1)
            limit = score[lanes, chosen] + self._window[:active]
            near = score <= limit[:, None]
            if np.count_nonzero(near) > active:
                self._settle(score, near, chosen, step)
            self._picks[:active, step] = chosen
            rows = self._similarity[self._first_row[:active] + chosen]
            np.maximum(closest[:active], rows, out=closest[:active])
            closest[lanes, chosen] = np.inf

    def picks(self) -> list[Indices]:
        """Return the picks per view, in the caller's order of views."""
        found: dict[int, Indices] = {}
        for lane, view in enumerate(self._views.tolist()):
            count = int(self._num_keep[lane])
            if self._pairs_left[lane] < 0:
                found[view] = float64_order(self._tokens[view], self._inverse[view], count)
            else:
                found[view] = self._picks[lane, :count]
        return [found[view] for view in range(len(self._views))]

    def _settle(
        self, score: Floats, near: npt.NDArray[np.bool_], chosen: Indices, step: int
    ) -> None:
        """Correct `chosen` where float32 cannot tell the best from the next best."""
        for lane in np.flatnonzero(near.sum(axis=1) > 1):
            if self._pairs_left[lane] < 0:
                continue
            candidates = np.flatnonzero(near[lane])
            rivals = self._picks[lane, :step] if step else np.arange(score.shape[1])
            best = self._best(int(lane), candidates, rivals, score[lane, candidates])
            chosen[lane] = chosen[lane] if best is None else best

    def _best(
        self, lane: int, candidates: Indices, rivals: Indices, score: Floats
    ) -> np.int64 | None:
        """Return the candidate least similar to all rivals, in float64; None past the budget."""
        rows = self._similarity[self._first_row[lane] + candidates]
        can_matter = rows[:, rivals] >= (score - self._window[lane])[:, None]
        which, rival = np.nonzero(can_matter)
        self._pairs_left[lane] -= len(which)
        if self._pairs_left[lane] < 0:
            return None
        view = int(self._views[lane])
        cosine = self._cosines(view, candidates[which], rivals[rival])
        highest = np.full(len(candidates), -np.inf)
        np.maximum.at(highest, which, cosine)
        return np.int64(candidates[_first_lowest(highest)])

    def _cosines(self, view: int, left: Indices, right: Indices) -> Doubles:
        """Return the float64 cosines of pairs of tokens of one view; 0 with a zero vector."""
        tokens, inverse = self._tokens[view].numpy(), self._inverse[view].numpy()
        a, b = (tokens[side].astype(np.float64) for side in (left, right))
        product = np.einsum('pd,pd->p', a, b)
        square = np.einsum('pd,pd->p', a, a) * np.einsum('pd,pd->p', b, b)
        measurable = inverse[left] * inverse[right] > 0
        cosine: Doubles = product / np.sqrt(np.where(measurable, square, np.inf))
        return cosine


def _first_lowest(values: Doubles) -> int:
    """Return the lowest index among the values that equal the smallest one."""
    return int(np.argmax(values <= values.min() + TIE))


def float64_order(tokens: Tensor, inverse: Tensor, num_keep: int) -> Indices:
    """Run T-FPS on one view in float64 throughout.

    Args:
        tokens: Float [tokens, hidden] on the CPU.
        inverse: Float32 [tokens], 0 for zero vectors.
        num_keep: How many tokens to pick, in [1, tokens).

    Returns:
        Int64 [num_keep], in the order of picking.
    """
    exact = tokens.double()
    norm = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    unit = torch.where(inverse[:, None] > 0, exact / norm, 0.0)
    similarity: Doubles = (unit @ unit.T).fill_diagonal_(-torch.inf).numpy()
    picks = np.empty(num_keep, dtype=np.int64)
    pick = _first_lowest(similarity.max(axis=1))
    closest = np.full(len(tokens), -np.inf)
    for step in range(num_keep):
        picks[step] = pick
        np.maximum(closest, similarity[pick], out=closest)
        closest[pick] = np.inf
        pick = _first_lowest(closest)
    return picks
