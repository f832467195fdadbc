"""The name of a selection method comes in; its selector, or the kept indices, go out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2d_node.errors import ConfigError
from p2d_node.token_selection.base import TokenSelector
from p2d_node.token_selection.dart import DartSelector
from p2d_node.token_selection.divprune import DivPruneSelector
from p2d_node.token_selection.grid import GridSelector
from p2d_node.token_selection.random_ import RandomSelector
from p2d_node.token_selection.tfps import TfpsSelector, TokenOrder
from p2d_node.token_selection.tfps_motion import MotionTfpsSelector
from torch import Tensor

MakeSelector = Callable[[tuple[int, int] | None], TokenSelector]
"""Gets rows and columns of a view's tokens, or None if they form a square."""

SELECTORS: dict[str, MakeSelector] = {
    'tfps': lambda grid_size: TfpsSelector(),
    'tfps_motion': lambda grid_size: MotionTfpsSelector(),
    'random': lambda grid_size: RandomSelector(),
    'grid': GridSelector,
    'divprune': lambda grid_size: DivPruneSelector(),
    'dart': lambda grid_size: DartSelector(),
}
"""Name of a method to the function that creates its selector. A program may add its own."""

UNAVAILABLE_METHODS = {
    'fastv': 'it ranks tokens by attention inside the language model, and selection here uses no '
    'attention',
}
"""Methods of other papers that are not implemented, and the reason."""


def make_selector(method: str, grid_size: tuple[int, int] | None = None) -> TokenSelector:
    """Create a selector. Reuse it for all sweeps, from one thread at a time.

    Args:
        method: A key of `SELECTORS`.
        grid_size: Rows and columns of a view's tokens, for methods that use positions; None: the
            tokens form a square.

    Raises:
        ConfigError: The method is unknown or not available.
    """
    if method in SELECTORS:
        return SELECTORS[method](grid_size)
    allowed = ', '.join(SELECTORS)
    if method in UNAVAILABLE_METHODS:
        raise ConfigError(
            f'selector: got {method!r}, which is not available: {UNAVAILABLE_METHODS[method]}; '
            f'allowed: {allowed}'
        )
    raise ConfigError(f'selector: got {method!r}, allowed: {allowed}')


def select_tokens(
    visual_tokens: Tensor,
    num_keep: Sequence[int],
    method: str = 'tfps',
    *,
    grid_size: tuple[int, int] | None = None,
) -> list[Tensor]:
    """Choose which visual tokens of each view are kept. Any thread may call it.

    It creates a selector per call. To select for many sweeps, create one with `make_selector` and
    reuse it: on GPUs without Triton it owns CUDA graphs.

    Args:
        visual_tokens: Float [views, tokens, hidden], any device.
        num_keep: Per view the number of tokens to keep, in [1, tokens].
        method: A key of `SELECTORS`.
        grid_size: Rows and columns of a view's tokens; None: they form a square.

    Returns:
        Per view the kept indices, int64, ascending, on the tokens' device.

    Raises:
        ConfigError: The method is unknown or not available.
        InferenceError: Shapes or counts are invalid; on a CPU also NaN or infinite tokens.
    """
    return make_selector(method, grid_size).select(visual_tokens, num_keep)


def order_tokens(visual_tokens: Tensor, num_picks: int) -> TokenOrder:
    """Return the first `num_picks` picks of T-FPS per view, in order. Any thread may call it.

    Args:
        visual_tokens: Float [views, tokens, hidden], any device.
        num_picks: Number of picks per view, in [1, tokens].

    Raises:
        InferenceError: As `select_tokens`.
    """
    return TfpsSelector().order(visual_tokens, num_picks)
