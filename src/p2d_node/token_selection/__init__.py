"""Choosing which visual tokens the language model sees."""

from p2d_node.token_selection.base import num_keep_from_retention
from p2d_node.token_selection.factory import select_tokens

__all__ = ['num_keep_from_retention', 'select_tokens']
