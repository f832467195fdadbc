"""Baseline: a uniform spatial grid over the picture."""

from __future__ import annotations

from collections.abc import Sequence
import math

from p2d_node.errors import ConfigError
from p2d_node.token_selection.base import check_selection_input
import torch
from torch import Tensor


class GridSelector:
    """Keeps tokens spread evenly over rows and columns; looks at no feature.

    Attributes:
        grid_size: Rows and columns of the patches, row-major; None: the tokens form a square, or,
            where their number is not a square, one row.
    """

    def __init__(self, grid_size: tuple[int, int] | None = None) -> None:
        self.grid_size = grid_size

    def select(self, visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
        """Choose per view; see `TokenSelector.select`."""
        check_selection_input(visual_tokens, num_keep)
        height, width = self._size(visual_tokens.shape[1])
        return [
            torch.tensor(even_grid(height, width, count), device=visual_tokens.device)
            for count in num_keep
        ]

    def _size(self, num_tokens: int) -> tuple[int, int]:
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
    """Return `count` row-major positions of a height x width grid, as evenly spread as they go.

    Rows are as many as keep the spacing in both directions alike; the positions are shared out
    over the rows, and each row's lie in the middle of equal pieces of it.
    """
    wanted_rows = round(math.sqrt(count * height / width))
    rows = min(height, max(1, wanted_rows, -(-count // width)))
    positions = []
    for row in range(rows):
        y = (2 * row + 1) * height // (2 * rows)
        in_row = (row + 1) * count // rows - row * count // rows
        positions += [
            y * width + (2 * column + 1) * width // (2 * in_row) for column in range(in_row)
        ]
    return positions
