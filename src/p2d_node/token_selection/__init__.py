"""Choosing which visual tokens the language model sees."""

from p2d_node.token_selection.base import num_keep_from_retention, require_finite
from p2d_node.token_selection.factory import make_selector, select_tokens

__all__ = ['make_selector', 'num_keep_from_retention', 'require_finite', 'select_tokens']
