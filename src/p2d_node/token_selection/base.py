"""The interface of token selectors, their input checks, and retention ratios as token counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from p2d_node.errors import ConfigError, InferenceError
import torch
from torch import Tensor

ZERO_NORM = 2.0**-50
"""Tokens with a norm up to this count as zero vectors, which have no direction."""

MAX_NORM = 2.0**60
"""Tokens with a larger norm are not usable, like tokens with NaN or infinity."""


class TokenSelector(Protocol):
    """Chooses which visual tokens of each view are kept."""

    def select(self, visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
        """Choose `num_keep[v]` of the tokens of each view v.

        Args:
            visual_tokens: Float [views, tokens, hidden], any device.
            num_keep: Per view the number of tokens to keep, in [1, tokens].

        Returns:
            Per view the kept indices, int64 [num_keep[v]], ascending, on the tokens' device.
        """
        ...


def num_keep_from_retention(num_tokens: int, retention_ratio: float) -> int:
    """Return the number of kept tokens: `int(num_tokens * retention_ratio)`, at least 1.

    It is rounded down as in the published inference code (the paper's text has a ceiling). 1e-9 is
    added first, so that 0.29 of 100 is 29 in spite of the rounding of binary fractions.

    Raises:
        ConfigError: The ratio is not in (0, 1].
    """
    if not 0.0 < retention_ratio <= 1.0:
        raise ConfigError(f'retention_ratio: got {retention_ratio!r}, allowed: above 0 up to 1')
    return max(1, int(num_tokens * retention_ratio + 1e-9))


def num_keep_of_regions(num_tokens: Sequence[int], ratios: Sequence[float]) -> list[int]:
    """Return the numbers of kept tokens of the regions of one picture.

    With one ratio for all regions the total is that of the whole picture, as published; rounding
    region by region would keep less. It is split by largest remainder.

    Args:
        num_tokens: Of each region.
        ratios: Of each region.

    Raises:
        ConfigError: A ratio is not in (0, 1].
    """
    counts = count_kept(num_tokens, ratios, stitched=False)
    exact = [n * r for n, r in zip(num_tokens, ratios, strict=True)]
    left = int(sum(exact) + 1e-9) - sum(counts)
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
    for index in by_remainder[: max(0, left)]:
        counts[index] += 1
    return counts


def count_kept(num_tokens: Sequence[int], ratios: Sequence[float], *, stitched: bool) -> list[int]:
    """Return the number of kept tokens of each view.

    Args:
        num_tokens: Of each view.
        ratios: Of each view.
        stitched: Whether the views are regions of one picture; see `num_keep_of_regions`.

    Raises:
        ConfigError: A ratio is not in (0, 1].
    """
    if stitched:
        return num_keep_of_regions(num_tokens, ratios)
    return [num_keep_from_retention(n, r) for n, r in zip(num_tokens, ratios, strict=True)]


def share_out(counts: Sequence[int], limits: Sequence[int], extra: int) -> list[int]:
    """Add `extra` to the counts, in proportion to them and up to the limits.

    Args:
        counts: Numbers of tokens, each 1 or more.
        limits: Largest value of each count.
        extra: How many to add; what exceeds all limits is not added.
    """
    shared = list(counts)
    for _ in range(min(extra, sum(limits) - sum(counts))):
        open_views = [i for i, limit in enumerate(limits) if shared[i] < limit]
        shared[min(open_views, key=lambda i: shared[i] / counts[i])] += 1
    return shared


def split_evenly(count: int, num_parts: int) -> list[int]:
    """Split `count` into parts of at least 1 that differ by at most 1, the last ones larger."""
    return [max(1, (count + part) // num_parts) for part in range(num_parts)]


def check_selection_input(visual_tokens: Tensor, num_keep: Sequence[int]) -> None:
    """Check shapes and counts, without reading tensor values.

    Raises:
        InferenceError: The tokens are not float [views, tokens, hidden], or a count is not in
            [1, tokens].
    """
    if visual_tokens.dim() != 3 or not torch.is_floating_point(visual_tokens):
        raise InferenceError(
            f'visual_tokens: got {visual_tokens.dtype} {list(visual_tokens.shape)}, '
            'allowed: float [views, tokens, hidden]'
        )
    num_views, num_tokens, _ = visual_tokens.shape
    if len(num_keep) != num_views:
        raise InferenceError(
            f'num_keep: got {len(num_keep)} counts for {num_views} views, allowed: one per view'
        )
    for view, count in enumerate(num_keep):
        if not 1 <= count <= num_tokens:
            raise InferenceError(f'num_keep[{view}]: got {count}, allowed: 1 to {num_tokens}')


def inverse_norms(visual_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inverse norm of each token, and which tokens are usable.

    Args:
        visual_tokens: Float [views, tokens, hidden], any device; no host synchronisation.

    Returns:
        1 / norm, float32 [views, tokens], 0 for zero vectors and unusable tokens; and bool
        [views, tokens], False for tokens with NaN, infinity or a norm above `MAX_NORM`.
    """
    if visual_tokens.dtype == torch.float64:
        visual_tokens = visual_tokens.float()
    norm = torch.linalg.vector_norm(visual_tokens, dim=-1, dtype=torch.float32)
    usable = norm <= MAX_NORM
    return torch.where(usable & (norm > ZERO_NORM), norm.reciprocal(), 0.0), usable


def require_usable(usable: Tensor) -> None:
    """Check that all tokens are usable; copies one flag to the host.

    Args:
        usable: Bool [views, tokens], from `inverse_norms`.

    Raises:
        InferenceError: Some are not; the message names the first one.
    """
    if bool(usable.all()):
        return
    view, token = (~usable).nonzero()[0].tolist()
    raise InferenceError(
        f'visual_tokens[{view}, {token}]: got NaN, infinity or a norm above {MAX_NORM:.0e}, '
        'allowed: finite features; check the vision encoder and its precision'
    )


def require_finite(visual_tokens: Tensor) -> None:
    """Check that all tokens are finite, with one host synchronisation on a GPU.

    On a CPU the selectors that read features include this check. On a GPU they do not, because of
    the synchronisation.

    Args:
        visual_tokens: Float [views, tokens, hidden], any device.

    Raises:
        InferenceError: A token has NaN, infinity or a norm above `MAX_NORM`.
    """
    require_usable(inverse_norms(visual_tokens)[1])
