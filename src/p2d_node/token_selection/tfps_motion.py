"""T-FPS over clips with soft weights: new and moving tokens first, what a neighbour sees last.

The idea of weighting diversity by time and by the overlap of neighbouring views is ST-Prune's
(arXiv 2604.19145); its code is not public, and this formula is our own. With unit features u of
place p in frame f of a camera, numbered from 0, oldest first, the weight of a token is

    w = RECENCY ** (frames - 1 - f) * (1 + MOTION * m) * (1 - OVERLAP * o)

m is the distance 1 - cosine between u[f, p] and u[f - 1, p] (in frame 0: u[1, p]), divided by the
largest of the camera; 0 without clips. o is the largest cosine between u[f, p] and any token of
frame f of the two neighbouring views, at least 0. The first pick has the largest w times distance
to its nearest neighbour, each further pick the largest w times distance to the nearest pick.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2d_node.token_selection.base import check_selection_input, inverse_norms, require_usable
from p2d_node.token_selection.tfps_exact import MAX_SIMILARITIES
import torch
from torch import Tensor

RECENCY = 0.8
MOTION = 1.0
OVERLAP = 0.5


class MotionTfpsSelector:
    """T-FPS with the weights of this module. It holds nothing; any thread may use it."""

    def select(
        self,
        visual_tokens: Tensor,
        num_keep: Sequence[int],
        *,
        num_frames: int = 1,
        neighbours: Sequence[Sequence[int]] = (),
    ) -> list[Tensor]:
        """Choose `num_keep[v]` of the tokens of each view v.

        On a GPU it does not wait for the device.

        Args:
            visual_tokens: Float [views, frames x tokens, hidden].
            num_keep: Per view the number of tokens to keep, in [1, frames x tokens].
            num_frames: Frames of each view's clip, oldest first.
            neighbours: Per view the views beside it; empty: none.

        Returns:
            Per view the kept indices, int64 [num_keep[v]], ascending, on the tokens' device.

        Raises:
            InferenceError: As `select_tokens`.
        """
        check_selection_input(visual_tokens, num_keep)
        inverse, usable = inverse_norms(visual_tokens)
        if not visual_tokens.is_cuda:
            require_usable(usable)
        unit = torch.where(usable[..., None], visual_tokens.float() * inverse[..., None], 0.0)
        weights = _weights(unit, num_frames, neighbours)
        num_views, num_tokens, _ = unit.shape
        at_once = num_views if num_views * num_tokens**2 <= MAX_SIMILARITIES else 1
        parts = zip(torch.split(unit, at_once), torch.split(weights, at_once), strict=True)
        order = torch.cat([_pick(_distances(part), w, max(num_keep)) for part, w in parts])
        return [picks[:count].sort().values for picks, count in zip(order, num_keep, strict=True)]


def _distances(unit: Tensor) -> Tensor:
    """Return 1 - cosine between the tokens of each view, float32 [views, tokens, tokens]."""
    return (unit @ unit.mT).neg_().add_(1.0)


def _weights(unit: Tensor, num_frames: int, neighbours: Sequence[Sequence[int]]) -> Tensor:
    """Return the weight of each token, float32 [views, frames x tokens]."""
    clips = unit.unflatten(1, (num_frames, -1))  # type: ignore[no-untyped-call]
    ages = torch.arange(num_frames - 1, -1, -1, device=unit.device)[:, None]
    weights = (RECENCY**ages) * (1.0 + MOTION * _motion(clips))
    for view, beside in enumerate(neighbours):
        overlap = [(clips[view] @ clips[other].mT).amax(dim=2) for other in beside]
        if overlap:
            nearest = torch.stack(overlap).amax(dim=0).clamp(min=0.0)
            weights[view] *= 1.0 - OVERLAP * nearest
    return weights.flatten(1)


def _motion(clips: Tensor) -> Tensor:
    """Return how far each token moved, 0 to 1; float32 [views, frames, tokens]."""
    num_views, num_frames, num_tokens, _ = clips.shape
    if num_frames == 1:
        return clips.new_zeros(num_views, 1, num_tokens)
    change = (1.0 - (clips[:, 1:] * clips[:, :-1]).sum(dim=-1)).clamp(min=0.0)
    change = torch.cat([change[:, :1], change], dim=1)
    largest = change.amax(dim=(1, 2), keepdim=True)
    return change / largest.clamp(min=torch.finfo(torch.float32).tiny)


def _pick(distances: Tensor, weights: Tensor, num_picks: int) -> Tensor:
    """Return the picks of every view in their order, int64 [views, num_picks].

    Args:
        distances: Float32 [views, tokens, tokens]; the diagonal is overwritten.
        weights: Float32 [views, tokens], above 0.
        num_picks: Number of picks per view.
    """
    num_views = len(distances)
    views = torch.arange(num_views, device=distances.device)
    picks = torch.empty(num_views, num_picks, dtype=torch.int64, device=distances.device)
    distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest = distances.amin(dim=2).clamp(min=0.0)
    nearest = torch.where(nearest.isinf(), 1.0, nearest)  # a view of one token
    distances.diagonal(dim1=1, dim2=2).zero_()
    taken = torch.zeros_like(nearest, dtype=torch.bool)
    gains = nearest * weights
    to_picks = torch.full_like(nearest, torch.inf)
    for number in range(num_picks):
        picked = gains.masked_fill(taken, -1.0).argmax(dim=1)
        picks[:, number] = picked
        taken[views, picked] = True
        to_picks = torch.minimum(to_picks, distances[views, picked])
        gains = to_picks.clamp(min=0.0) * weights
    return picks
