"""Models that see all views stitched into one picture: its layout, and which tokens are whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from p2d_node.errors import ConfigError, ImageDecodeError
from p2d_node.records import DecodedFrame
import torch
from torch import Tensor

MOSAIC_KEY = 'p2d_mosaic'
"""In config.json: rows of camera names, top to bottom; absent where views stay apart."""


@dataclass(frozen=True, slots=True)
class Region:
    """The tokens of one view in the grid of the whole picture.

    Attributes:
        indices: int64 [tokens], row by row.
        grid: Rows and columns of them.
    """

    indices: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Mosaic:
    """How views are stitched.

    Attributes:
        rows: Names of cameras, top to bottom, each left to right; all rows are as long.
    """

    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Mosaic | None:
        """Return what a checkpoint's config.json says; None where its views stay apart.

        Raises:
            ConfigError: No table of different names.
        """
        rows = config.get(MOSAIC_KEY)
        if rows is None:
            return None
        is_table = isinstance(rows, list) and bool(rows) and all(isinstance(r, list) for r in rows)
        names = [name for row in rows for name in row] if is_table else []
        if not names or len({len(row) for row in rows}) > 1 or len(set(names)) < len(names):
            raise ConfigError(
                f'model: config.json: {MOSAIC_KEY}: got {rows!r}, allowed: rows of different '
                'camera names, all as long'
            )
        return cls(tuple(tuple(str(name) for name in row) for row in rows))

    @property
    def cameras(self) -> tuple[str, ...]:
        """All cameras, row by row."""
        return tuple(name for row in self.rows for name in row)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of views."""
        return len(self.rows), len(self.rows[0])

    def stitch(self, frames: Sequence[DecodedFrame]) -> DecodedFrame:
        """Put frames of one size side by side; where one is missing it stays black.

        Raises:
            ImageDecodeError: Frames of different sizes or channel orders.
        """
        first = frames[0]
        rows, columns = self.shape
        height, width = first.pixels.shape[:2]
        picture = np.zeros((rows * height, columns * width, 3), np.uint8)
        for frame in frames:
            if _kind(frame) != _kind(first):
                raise ImageDecodeError(
                    f'{frame.camera}: got {_kind(frame)}, but {first.camera} {_kind(first)}; this '
                    'model takes one picture stitched of views of one size'
                )
            self.cut(picture, frame.camera)[:] = frame.pixels
        return DecodedFrame('mosaic', first.stamp_ns, picture, first.channel_order)

    def cut(self, picture: npt.NDArray[Any], camera: str) -> npt.NDArray[Any]:
        """Return the part of `picture` [height, width, ...] that shows `camera`, no copy."""
        row, column = self._place(camera)
        rows, columns = self.shape
        height, width = picture.shape[0] // rows, picture.shape[1] // columns
        return picture[row * height : (row + 1) * height, column * width : (column + 1) * width]

    def region(self, camera: str, grid: tuple[int, int], device: torch.device) -> Region:
        """Return the tokens of `camera`: those whose middle lies in its view.

        Args:
            camera: One of `cameras`.
            grid: Rows and columns of the tokens of the whole picture.
            device: Where the indices go.
        """
        inside = [
            [i for i in range(tokens) if (2 * i + 1) * views // (2 * tokens) == place]
            for tokens, views, place in zip(grid, self.shape, self._place(camera), strict=True)
        ]
        token_rows, token_columns = (torch.tensor(side, device=device) for side in inside)
        indices = token_rows[:, None] * grid[1] + token_columns
        return Region(indices.flatten(), (len(token_rows), len(token_columns)))

    def _place(self, camera: str) -> tuple[int, int]:
        return divmod(self.cameras.index(camera), self.shape[1])


def _kind(frame: DecodedFrame) -> str:
    height, width = frame.pixels.shape[:2]
    return f'{height} x {width} {frame.channel_order}'
