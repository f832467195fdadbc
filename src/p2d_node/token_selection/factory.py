"""From the name of a selection method to its selector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2d_node.errors import ConfigError
from p2d_node.token_selection.base import TokenSelector
from p2d_node.token_selection.tfps import TfpsSelector
from torch import Tensor

SELECTORS: dict[str, Callable[[], TokenSelector]] = {'tfps': TfpsSelector}


def make_selector(method: str) -> TokenSelector:
    """Return the selector called `method`; raises `ConfigError` where there is none."""
    if method not in SELECTORS:
        raise ConfigError(f'selector: got {method!r}, allowed: {", ".join(SELECTORS)}')
    return SELECTORS[method]()


def select_tokens(
    visual_tokens: Tensor, num_keep: Sequence[int], method: str = 'tfps'
) -> list[Tensor]:
    """Choose which visual tokens of each view are kept.

    Args:
        visual_tokens: Float [views, tokens, hidden], any device.
        num_keep: Per view how many tokens stay, each in [1, tokens].
        method: Name of the selection method.

    Returns:
        Per view the kept indices, int64, ascending, on the tokens' device.

    Raises:
        ConfigError: No such method.
        InferenceError: Shapes or counts that do not fit.
    """
    return make_selector(method).select(visual_tokens, num_keep)
