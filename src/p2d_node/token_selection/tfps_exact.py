"""T-FPS on a CPU: computed in float32, with near ties decided in float64.

Visual tokens [views, tokens, hidden] come in; the picks of each view in their order, int64
[picks], go out. They equal those of a float64 computation from the formula.

1. Compute one float32 similarity matrix per view. It is symmetric: only strips right of the
   diagonal are computed and mirrored (about 5/8 of the arithmetic of the full product).
2. Pick for all views in each step. Each token has a running maximum of its similarity to the
   picks.
3. If other tokens are within float32's error of the best one, recompute the few relevant pairs in
   float64. A view with very many of them (equal or nearly equal tokens) is recomputed in float64
   as a whole.
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

TIE_TOLERANCE = 2.0**-45
"""Cosines within it are equal: some float64 roundings of a sum over thousands of terms."""

FLOAT32_ROUNDING = 2.0**-24

MAX_SIMILARITIES = 1 << 26
"""Of all views at once, 256 MiB; larger views are searched one after the other."""

NUM_STRIPS = 4
"""Strips per similarity matrix. More of them save arithmetic (up to half), but run slower."""

PAIR_BUDGET = 1024
"""Pairs per view that are recomputed in float64; for more, the whole view is cheaper."""


def exact_orders(visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
    """Return the picks of each view in their order.

    Args:
        visual_tokens: Float [views, tokens, hidden] on the CPU, two or more tokens.
        num_keep: Per view the number of picks, in [0, tokens).

    Returns:
        Per view int64 [num_keep[v]].

    Raises:
        InferenceError: A token has NaN, infinity or a norm above `base.MAX_NORM`.
    """
    inverse, usable = inverse_norms(visual_tokens)
    require_usable(usable)
    is_float64 = visual_tokens.dtype == torch.float64
    tokens = visual_tokens if is_float64 else visual_tokens.float()  # exact for half precision
    num_views, num_tokens, _ = tokens.shape
    if num_views > 1 and num_views * num_tokens**2 > MAX_SIMILARITIES:
        views = zip(torch.split(tokens, 1), num_keep, strict=True)
        return [order for view, count in views for order in exact_orders(view, [count])]
    search = _GreedySearch(tokens, inverse, num_keep)
    search.run()
    return [torch.from_numpy(picks) for picks in search.picks()]


def similarity_matrices(visual_tokens: Tensor, inverse: Tensor) -> Tensor:
    """Compute the cosines between the tokens of each view.

    Args:
        visual_tokens: Float [views, tokens, hidden] on the CPU.
        inverse: Float32 [views, tokens], 1 / norm of each token.

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
        rows = similarity[:, start:stop, start:]
        torch.mul(strip.mul_(inverse[:, None, start:]), inverse[:, start:stop, None], out=rows)
        similarity[:, stop:, start:stop] = rows[:, :, stop - start :].transpose(1, 2)
    return similarity


def similarity_error(similarity: Tensor, inverse: Tensor, hidden: int) -> Tensor:
    """Estimate per view the error of float32 cosines.

    The exact cosine of a token with itself is 1, and no other pair has larger partial sums to
    round. The estimate is four times the largest error of these cosines, because the errors of a
    token's norm and of its product with itself can partly cancel. Its lower bound is sixteen
    roundings of norms and products, plus 0.5 * sqrt(hidden) for the random walk of a sum's
    roundings. Products in reduced precision (a global setting of torch) increase the estimate, so
    that more pairs are recomputed in float64.

    Args:
        similarity: Float32 [views, tokens, tokens], diagonal included.
        inverse: Float32 [views, tokens], 0 for zero vectors.
        hidden: Number of features.

    Returns:
        Float32 [views].
    """
    diagonal = similarity.diagonal(dim1=1, dim2=2)
    largest = torch.where(inverse > 0, diagonal - 1.0, 0.0).abs().amax(dim=1)
    return (4.0 * largest).clamp(min=(16.0 + 0.5 * hidden**0.5) * FLOAT32_ROUNDING)


class _GreedySearch:
    """The greedy search over all views of one sweep.

    Arrays over views are in the order of descending counts, so that the views that still need
    picks are the first ones. `row` is a view's place in this order.
    """

    def __init__(self, tokens: Tensor, inverse: Tensor, num_keep: Sequence[int]) -> None:
        self._tokens, self._inverse = tokens, inverse
        similarity = similarity_matrices(tokens, inverse)
        error = similarity_error(similarity, inverse, hidden=tokens.shape[2])
        similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        self._views = np.argsort(-np.asarray(num_keep), kind='stable')
        self._num_keep = np.asarray(num_keep)[self._views]
        # The comparison of two cosines has an error of up to twice that of one.
        self._tolerance = 2.0 * error.numpy()[self._views]
        self._similarity: Floats = similarity.numpy()
        self._nearest: Floats = similarity.amax(dim=1).numpy()[self._views]
        self._picks: Indices = np.empty((len(tokens), max(num_keep)), dtype=np.int64)
        self._pairs_left = np.full(len(tokens), PAIR_BUDGET)

    def run(self) -> None:
        """Pick for all views, one pick per view and step."""
        to_picks = np.full_like(self._nearest, -np.inf)
        for step in range(self._picks.shape[1]):
            num_active = int(np.count_nonzero(self._num_keep > step))
            rows = np.arange(num_active)
            score = (to_picks if step else self._nearest)[:num_active]
            chosen = score.argmin(axis=1)
            limit = score[rows, chosen] + self._tolerance[:num_active]
            is_candidate = score <= limit[:, None]
            if np.count_nonzero(is_candidate) > num_active:
                self._resolve_ties(score, is_candidate, chosen, step)
            self._picks[:num_active, step] = chosen
            to_chosen = self._similarity[self._views[:num_active], chosen]
            np.maximum(to_picks[:num_active], to_chosen, out=to_picks[:num_active])
            to_picks[rows, chosen] = np.inf

    def picks(self) -> list[Indices]:
        """Return the picks per view, in the caller's order of views."""
        found: dict[int, Indices] = {}
        for row, view in enumerate(self._views.tolist()):
            count = int(self._num_keep[row])
            if self._pairs_left[row] < 0:
                found[view] = float64_order(self._tokens[view], self._inverse[view], count)
            else:
                found[view] = self._picks[row, :count]
        return [found[view] for view in range(len(self._views))]

    def _resolve_ties(
        self, score: Floats, is_candidate: npt.NDArray[np.bool_], chosen: Indices, step: int
    ) -> None:
        """Correct `chosen` in views with several tokens within float32's error of the best."""
        for row in np.flatnonzero(is_candidate.sum(axis=1) > 1):
            if self._pairs_left[row] < 0:
                continue
            candidates = np.flatnonzero(is_candidate[row])
            others = self._picks[row, :step] if step else np.arange(score.shape[1])
            best = self._find_farthest(int(row), candidates, others, score[row, candidates])
            chosen[row] = chosen[row] if best is None else best

    def _find_farthest(
        self, row: int, candidates: Indices, others: Indices, score: Floats
    ) -> np.int64 | None:
        """Return the candidate that is farthest from all `others`, in float64.

        Args:
            row: Row of the view.
            candidates: Tokens to choose from.
            others: The picks so far; all tokens at the first step.
            score: Per candidate its largest float32 similarity to `others`.

        Returns:
            The token; None if the view has used up its budget of pairs.
        """
        view = int(self._views[row])
        similarity = self._similarity[view, candidates][:, others]
        is_relevant = similarity >= (score - self._tolerance[row])[:, None]
        which, other = np.nonzero(is_relevant)
        self._pairs_left[row] -= len(which)
        if self._pairs_left[row] < 0:
            return None
        cosine = self._cosines(view, candidates[which], others[other])
        largest = np.full(len(candidates), -np.inf)
        np.maximum.at(largest, which, cosine)
        chosen: np.int64 = candidates[_first_smallest(largest)]
        return chosen

    def _cosines(self, view: int, left: Indices, right: Indices) -> Doubles:
        """Return the float64 cosines of pairs of tokens of one view; 0 with a zero vector."""
        tokens, inverse = self._tokens[view].numpy(), self._inverse[view].numpy()
        a, b = (tokens[side].astype(np.float64) for side in (left, right))
        product = np.einsum('pd,pd->p', a, b)
        square = np.einsum('pd,pd->p', a, a) * np.einsum('pd,pd->p', b, b)
        is_nonzero = inverse[left] * inverse[right] > 0
        cosine: Doubles = product / np.sqrt(np.where(is_nonzero, square, np.inf))
        return cosine


def _first_smallest(values: Doubles) -> int:
    """Return the lowest index among the values that equal the smallest one."""
    return int(np.argmax(values <= values.min() + TIE_TOLERANCE))


def float64_order(tokens: Tensor, inverse: Tensor, num_keep: int) -> Indices:
    """Run T-FPS on one view in float64.

    Args:
        tokens: Float [tokens, hidden] on the CPU.
        inverse: Float32 [tokens], 0 for zero vectors.
        num_keep: Number of picks, in [1, tokens).

    Returns:
        Int64 [num_keep], in the order of picking.
    """
    tokens = tokens.double()
    norm = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
    unit = torch.where(inverse[:, None] > 0, tokens / norm, 0.0)
    similarity: Doubles = (unit @ unit.T).fill_diagonal_(-torch.inf).numpy()
    picks = np.empty(num_keep, dtype=np.int64)
    pick = _first_smallest(similarity.max(axis=1))
    to_picks = np.full(len(tokens), -np.inf)
    for step in range(num_keep):
        picks[step] = pick
        np.maximum(to_picks, similarity[pick], out=to_picks)
        to_picks[pick] = np.inf
        pick = _first_smallest(to_picks)
    return picks
