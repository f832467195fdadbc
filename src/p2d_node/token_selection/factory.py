"""From the name of a selection method to its selector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
import threading
from typing import cast

from p2d_node.errors import ConfigError
from p2d_node.token_selection.base import TokenSelector
from p2d_node.token_selection.divprune import DivPruneSelector
from p2d_node.token_selection.grid import GridSelector
from p2d_node.token_selection.random_ import RandomSelector
from p2d_node.token_selection.tfps import TfpsSelector, TokenOrder
from torch import Tensor

SELECTORS: dict[str, Callable[[], TokenSelector]] = {
    'tfps': TfpsSelector,
    'random': RandomSelector,
    'grid': GridSelector,
    'divprune': DivPruneSelector,
}

UNAVAILABLE = {
    'fastv': 'it ranks tokens by attention inside the language model, and selection runs before '
    'that, where there is no attention',
}
"""Methods that readers of the papers look for, and why they are not here."""


def make_selector(method: str, grid_size: tuple[int, int] | None = None) -> TokenSelector:
    """Return a new selector called `method`; raises `ConfigError` where there is none.

    `grid_size` is rows and columns of a view's tokens, for methods that look at places; None: they
    form a square.

    Keep it for sweep after sweep and use it from one thread: on GPUs without Triton it holds CUDA
    graphs between calls, and a new one would capture them again.
    """
    allowed = ', '.join(SELECTORS)
    if method in UNAVAILABLE:
        raise ConfigError(
            f'selector: got {method!r}, which is not available: {UNAVAILABLE[method]}; '
            f'allowed: {allowed}'
        )
    if method not in SELECTORS:
        raise ConfigError(f'selector: got {method!r}, allowed: {allowed}')
    return GridSelector(grid_size) if method == 'grid' else SELECTORS[method]()


def select_tokens(
    visual_tokens: Tensor,
    num_keep: Sequence[int],
    method: str = 'tfps',
    *,
    grid_size: tuple[int, int] | None = None,
) -> list[Tensor]:
    """Choose which visual tokens of each view are kept; from any thread.

    Args:
        visual_tokens: Float [views, tokens, hidden], any device.
        num_keep: Per view how many tokens stay, each in [1, tokens].
        method: Name of the selection method.
        grid_size: Rows and columns of a view's tokens; None: they form a square.

    Returns:
        Per view the kept indices, int64, ascending, on the tokens' device.

    Raises:
        ConfigError: No such method.
        InferenceError: Shapes or counts that do not fit; on a CPU also NaN or infinite tokens.
    """
    selector = _selector_of_thread(method, grid_size, threading.get_ident())
    return selector.select(visual_tokens, num_keep)


def order_tokens(visual_tokens: Tensor, num_picks: int) -> TokenOrder:
    """Return the first `num_picks` picks of T-FPS in every view, in their order; any thread.

    Args:
        visual_tokens: Float [views, tokens, hidden], any device.
        num_picks: In [1, tokens].

    Raises:
        InferenceError: As `select_tokens`.
    """
    selector = _selector_of_thread('tfps', None, threading.get_ident())
    return cast(TfpsSelector, selector).order(visual_tokens, num_picks)


@lru_cache(maxsize=32)
def _selector_of_thread(
    method: str, grid_size: tuple[int, int] | None, thread: int
) -> TokenSelector:
    """Return this thread's selector, so that what it captured for a GPU is used again."""
    return make_selector(method, grid_size)
