"""What every token selector promises, and how a retention ratio becomes a number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from p2d_node.errors import ConfigError, InferenceError
import torch
from torch import Tensor


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
