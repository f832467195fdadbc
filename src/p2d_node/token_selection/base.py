"""What every token selector promises, and how a retention ratio becomes a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from p2d_node.errors import ConfigError, InferenceError
import torch
from torch import Tensor

ZERO_NORM = 2.0**-50
"""A token no longer than this counts as a zero vector: its direction means nothing."""

LARGEST_NORM = 2.0**60
"""A token longer than this, or with a NaN or an infinity in it, is not a usable feature."""


class TokenSelector(Protocol):
    """Chooses per view which visual tokens are kept."""

    def select(self, visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
        """Choose `num_keep[v]` of the tokens of each view v.

        Args:
            visual_tokens: Float [views, tokens, hidden], any device.
            num_keep: Per view how many tokens stay, each in [1, tokens].

        Returns:
            Per view the kept indices, int64 [num_keep[v]], ascending, on the tokens' device.
        """
        ...


def num_keep_from_retention(num_tokens: int, retention_ratio: float) -> int:
    """Turn a retention ratio into a number of kept tokens: `int(num_tokens * ratio)`, at least 1.

    Rounds down as the published inference code does (the paper's text writes a ceiling). The
    product is nudged by 1e-9 so that ratios like 0.29 of 100 do not lose a token to binary
    fractions.
    """
    if not 0.0 < retention_ratio <= 1.0:
        raise ConfigError(f'retention_ratio: got {retention_ratio!r}, allowed: above 0 up to 1')
    return max(1, int(num_tokens * retention_ratio + 1e-9))


def check_selection_input(visual_tokens: Tensor, num_keep: Sequence[int]) -> None:
    """Raise where the shapes or counts do not fit; reads no tensor values.

    Raises:
        InferenceError: Not float [views, tokens, hidden], or a count outside [1, tokens].
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
    """Return what scales each token to length one, and which tokens are usable at all.

    Args:
        visual_tokens: Float [views, tokens, hidden], any device; no host synchronisation.

    Returns:
        1 / norm, float32 [views, tokens], 0 for zero vectors and unusable tokens; and bool
        [views, tokens], False where a token holds NaN or infinity or is longer than
        `LARGEST_NORM`.
    """
    if visual_tokens.dtype == torch.float64:
        visual_tokens = visual_tokens.float()
    norm = torch.linalg.vector_norm(visual_tokens, dim=-1, dtype=torch.float32)
    usable = norm <= LARGEST_NORM
    return torch.where(usable & (norm > ZERO_NORM), norm.reciprocal(), 0.0), usable


def require_usable(usable: Tensor) -> None:
    """Raise where a token is not usable; copies one flag to the host.

    Args:
        usable: Bool [views, tokens], from `inverse_norms`.

    Raises:
        InferenceError: Names the first such token.
    """
    if bool(usable.all()):
        return
    view, token = (~usable).nonzero()[0].tolist()
    raise InferenceError(
        f'visual_tokens[{view}, {token}]: got NaN, infinity or a norm above {LARGEST_NORM:.0e}, '
        'allowed: finite features; check the vision encoder and its precision'
    )


def require_finite(visual_tokens: Tensor) -> None:
    """Raise `InferenceError` where a token holds NaN or infinity.

    On a CPU the selectors that look at features do this by themselves. On a GPU it costs one
    host synchronisation, so they leave it to whoever wants it.

    Args:
        visual_tokens: Float [views, tokens, hidden], any device.
    """
    require_usable(inverse_norms(visual_tokens)[1])
