"""Baseline: a uniform spatial grid over each view."""

from __future__ import annotations

from collections.abc import Sequence
import math

from p2d_node.errors import ConfigError
from p2d_node.token_selection.base import check_selection_input
import torch
from torch import Tensor


class GridSelector:
    """Keeps tokens that are evenly spaced in rows and columns; does not read features.

    Attributes:
        grid_size: Rows and columns of a view's tokens, row-major. None: the tokens form a square,
            or one row if their number is not a square.
    """

    def __init__(self, grid_size: tuple[int, int] | None = None) -> None:
        self.grid_size = grid_size

    def select(self, visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
        """Choose per view; see `TokenSelector.select`."""
        check_selection_input(visual_tokens, num_keep)
        height, width = self._infer_size(visual_tokens.shape[1])
        return [
            torch.tensor(even_grid(height, width, count), device=visual_tokens.device)
            for count in num_keep
        ]

    def _infer_size(self, num_tokens: int) -> tuple[int, int]:
        side = math.isqrt(num_tokens)
        square = (side, side) if side * side == num_tokens else (1, num_tokens)
        height, width = self.grid_size or square
        if height * width != num_tokens:
            raise ConfigError(
                f'grid_size: got {height} x {width}, allowed: a product of {num_tokens}, '
                'the number of tokens per view'
            )
        return height, width


def even_grid(height: int, width: int, count: int) -> list[int]:
    """Return `count` evenly spaced positions, row-major, in a grid of `height` x `width`.

    The number of rows is chosen so that the spacing is about equal in both directions. Each row
    gets an equal share of the positions, up to rounding, at the centres of equal intervals.
    """
    even_rows = round(math.sqrt(count * height / width))
    rows = min(height, max(1, even_rows, -(-count // width)))
    positions = []
    for row in range(rows):
        y = (2 * row + 1) * height // (2 * rows)
        in_row = (row + 1) * count // rows - row * count // rows
        positions += [
            y * width + (2 * column + 1) * width // (2 * in_row) for column in range(in_row)
        ]
    return positions
