"""From the name of a selection method to its selector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    'fastv': 'it ranks tokens by attention inside the language model, and selection here uses no '
    'attention',
}
"""Methods of other papers that are not implemented, and why."""


def make_selector(method: str, grid_size: tuple[int, int] | None = None) -> TokenSelector:
    """Return a new selector. Hold it from sweep to sweep and use it from one thread at a time.

    Args:
        method: Name of the selection method.
        grid_size: Rows and columns of a view's tokens, for methods that use positions; None: the
            tokens form a square.

    Raises:
        ConfigError: No such method.
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
    """Choose which visual tokens of each view are kept. May be called from any thread.

    It creates a selector per call. For sweep after sweep hold one of `make_selector`: on GPUs
    without Triton it owns CUDA graphs.

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
    return make_selector(method, grid_size).select(visual_tokens, num_keep)


def order_tokens(visual_tokens: Tensor, num_picks: int) -> TokenOrder:
    """Return the first `num_picks` picks of T-FPS in every view, in order. Any thread may call it.

    Args:
        visual_tokens: Float [views, tokens, hidden], any device.
        num_picks: In [1, tokens].

    Raises:
        InferenceError: As `select_tokens`.
    """
    return TfpsSelector().order(visual_tokens, num_picks)
