"""Selection of the visual tokens that the language model reads."""

from p2d_node.token_selection.allocation import keep_by_coverage, select_adaptively
from p2d_node.token_selection.base import (
    count_kept,
    num_keep_from_retention,
    num_keep_of_regions,
    require_finite,
)
from p2d_node.token_selection.factory import make_selector, order_tokens, select_tokens
from p2d_node.token_selection.sweep_selector import SweepSelector
from p2d_node.token_selection.tfps import TokenOrder

__all__ = [
    'SweepSelector',
    'TokenOrder',
    'count_kept',
    'keep_by_coverage',
    'make_selector',
    'num_keep_from_retention',
    'num_keep_of_regions',
    'order_tokens',
    'require_finite',
    'select_adaptively',
    'select_tokens',
]
