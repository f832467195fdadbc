"""How camera views become the pictures that the vision encoder sees, and which tokens are whose.

Most models see each view as a picture of its own (`SeparateViews`). Some see all views stitched
into one picture (`MosaicViews`); the tokens of a view are then a region of that picture. All other
code uses the interface `Views` and does not ask which of the two it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from p2d_node.clips import count_frames
from p2d_node.errors import ConfigError, ImageDecodeError, quote
from p2d_node.records import DecodedFrame
import torch
from torch import Tensor

MOSAIC_KEY = 'p2d_mosaic'
"""In config.json: rows of camera names, top to bottom; absent where views are separate."""

MAX_ROWS = MAX_COLUMNS = 4
"""Of a mosaic. A model may pad it to a square, so a long one would take gigabytes."""

Grid = tuple[int, int]
"""Rows and columns of visual tokens, numbered row by row from the top left."""


@dataclass(frozen=True, slots=True)
class ViewBatch:
    """Visual tokens of cameras whose views have the same grid, and clips the same length.

    Attributes:
        cameras: Names of the cameras.
        states: Float [cameras, frames x tokens, hidden].
        grid: Rows and columns of the tokens of each view.
        num_frames: Frames of each camera.
    """

    cameras: tuple[str, ...]
    states: Tensor
    grid: Grid
    num_frames: int = 1


class Views(Protocol):
    """The pictures of a sweep, or of a clip of sweeps.

    Where a method takes the cameras of pictures, a camera of a clip stands once per frame, oldest
    first.

    Attributes:
        grid: Of one picture.
        stitched: Whether all views share one picture.
    """

    grid: Grid
    stitched: bool

    def count_pictures(self, num_cameras: int) -> int:
        """Return how many pictures the views of `num_cameras` cameras are."""
        ...

    def count_tokens(self, camera: str) -> int:
        """Return the number of visual tokens of one camera before any is dropped."""
        ...

    def check_cameras(self, cameras: Sequence[str]) -> None:
        """Raise `ConfigError` if a camera has no place in the pictures."""
        ...

    def to_pictures(self, frames: Sequence[DecodedFrame]) -> list[DecodedFrame]:
        """Return the pictures of a sweep, each as a frame.

        Raises:
            ImageDecodeError: Frames that do not fit together.
        """
        ...

    def split_states(self, states: Tensor, cameras: Sequence[str]) -> list[ViewBatch]:
        """Split float [pictures, tokens, hidden] by camera.

        Args:
            states: Of all pictures.
            cameras: The camera of each view in them.

        Returns:
            Batches that together hold each camera once.
        """
        ...

    def to_picture_indices(self, camera: str, indices: Tensor) -> Tensor:
        """Map indices into one camera's tokens to indices into its picture's tokens, int64."""
        ...

    def merge_indices(
        self, keep_indices: Sequence[Tensor], cameras: Sequence[str]
    ) -> list[Tensor]:
        """Turn kept indices per camera into ascending indices per picture.

        Args:
            keep_indices: Per camera, int64, ascending.
            cameras: The camera of each view in the pictures.
        """
        ...

    def token_map(self, camera: str, height: int, width: int) -> npt.NDArray[np.int64]:
        """Return for each pixel of a camera's frame the token that covers it.

        Returns:
            int64 [height, width], indices into the tokens of the camera's picture.
        """
        ...


class SeparateViews:
    """Each view is a picture of its own; see `Views`."""

    stitched = False

    def __init__(self, grid: Grid, *, padded: bool) -> None:
        """Describe the pictures.

        Args:
            grid: Rows and columns of the tokens of one view.
            padded: Whether the grid covers the frame padded to a square, or the frame itself.
        """
        self.grid = grid
        self._padded = padded

    def count_pictures(self, num_cameras: int) -> int:
        """Return the number of cameras."""
        return num_cameras

    def count_tokens(self, camera: str) -> int:
        """Return the number of tokens of one view; the same for all cameras."""
        return self.grid[0] * self.grid[1]

    def check_cameras(self, cameras: Sequence[str]) -> None:
        """Accept any camera."""

    def to_pictures(self, frames: Sequence[DecodedFrame]) -> list[DecodedFrame]:
        """Return the frames."""
        return list(frames)

    def split_states(self, states: Tensor, cameras: Sequence[str]) -> list[ViewBatch]:
        """Return one batch per length of clips."""
        num_frames = count_frames(cameras)
        if len(set(num_frames.values())) == 1:  # the usual case, without a copy
            joined = states.reshape(len(num_frames), -1, states.shape[-1])
            return [
                ViewBatch(tuple(num_frames), joined, self.grid, len(cameras) // len(num_frames))
            ]
        clips = dict(zip(num_frames, torch.split(states, list(num_frames.values())), strict=True))
        batches = []
        for length in dict.fromkeys(num_frames.values()):
            names = tuple(name for name in clips if num_frames[name] == length)
            joined = torch.stack([clips[name].flatten(0, 1) for name in names])
            batches.append(ViewBatch(names, joined, self.grid, length))
        return batches

    def to_picture_indices(self, camera: str, indices: Tensor) -> Tensor:
        """Return `indices`."""
        return indices

    def merge_indices(
        self, keep_indices: Sequence[Tensor], cameras: Sequence[str]
    ) -> list[Tensor]:
        """Split the indices of each camera by the frames of its clip; see `Views`."""
        num_frames = count_frames(cameras)
        if len(num_frames) == len(cameras):
            return list(keep_indices)
        num_tokens = self.grid[0] * self.grid[1]
        borders = torch.arange(1, max(num_frames.values()), device=keep_indices[0].device)
        # One copy to the host for all cameras.
        ends = torch.stack([torch.searchsorted(k, borders * num_tokens) for k in keep_indices])
        return [
            part - frame * num_tokens
            for kept, count, end in zip(keep_indices, num_frames.values(), ends.cpu(), strict=True)
            for frame, part in enumerate(kept.tensor_split(end[: count - 1]))
        ]

    def token_map(self, camera: str, height: int, width: int) -> npt.NDArray[np.int64]:
        """Return which token covers each pixel; see `Views`."""
        return _token_map(self.grid, height, width, padded=self._padded)


@dataclass(frozen=True, slots=True)
class Mosaic:
    """How views are stitched into one picture.

    Attributes:
        rows: Camera names, top to bottom, each row left to right; all rows are equally long.
    """

    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Mosaic | None:
        """Read the layout from a checkpoint's config.json; None if its views are separate.

        Raises:
            ConfigError: The value is not a table of different names, or has too many.
        """
        rows = config.get(MOSAIC_KEY)
        if rows is None:
            return None
        is_table = isinstance(rows, list) and bool(rows) and all(isinstance(r, list) for r in rows)
        names = [name for row in rows for name in row] if is_table else []
        are_texts = all(isinstance(name, str) for name in names)
        are_different = are_texts and len(set(names)) == len(names)
        is_rectangle = bool(names) and len({len(row) for row in rows}) == 1
        fits = is_rectangle and len(rows) <= MAX_ROWS and len(rows[0]) <= MAX_COLUMNS
        if not fits or not are_different:
            raise ConfigError(
                f'model: config.json: {MOSAIC_KEY}: got {quote(rows)}, allowed: up to '
                f'{MAX_ROWS} rows of up to {MAX_COLUMNS} different camera names, all of the same '
                'length'
            )
        return cls(tuple(map(tuple, rows)))

    @property
    def cameras(self) -> tuple[str, ...]:
        """All cameras, row by row."""
        return tuple(name for row in self.rows for name in row)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of views."""
        return len(self.rows), len(self.rows[0])

    def place(self, camera: str) -> tuple[int, int]:
        """Return the row and column of a camera."""
        return divmod(self.cameras.index(camera), self.shape[1])

    def crop(self, picture: npt.NDArray[Any], camera: str) -> npt.NDArray[Any]:
        """Return the part of `picture` [height, width, ...] that shows `camera`, as a view."""
        row, column = self.place(camera)
        rows, columns = self.shape
        height, width = picture.shape[0] // rows, picture.shape[1] // columns
        return picture[row * height : (row + 1) * height, column * width : (column + 1) * width]


@dataclass(frozen=True, slots=True)
class _Region:
    """The tokens of one view within the mosaic: int64 [tokens], row by row, and their grid."""

    indices: Tensor
    grid: Grid


class MosaicViews:
    """All views are stitched into one picture; see `Views`."""

    stitched = True

    def __init__(
        self, mosaic: Mosaic, grid: Grid, *, padded: bool, device: torch.device, model: str
    ) -> None:
        """Find the tokens of every view: those whose centre lies in it.

        Args:
            mosaic: The layout.
            grid: Rows and columns of the tokens of the whole picture.
            padded: Whether the grid covers the picture padded to a square, or the picture itself.
            device: Of the indices.
            model: Name of the model, for messages.

        Raises:
            ConfigError: The mosaic has more rows or columns than the picture has tokens.
        """
        if any(views > tokens for views, tokens in zip(mosaic.shape, grid, strict=True)):
            raise ConfigError(
                f'model: config.json: {MOSAIC_KEY}: got {mosaic.shape[0]} rows of '
                f'{mosaic.shape[1]} views, allowed with {model}: up to {grid[0]} rows of '
                f'{grid[1]}, as its picture has no more tokens; copy config.json again'
            )
        self.grid = grid
        self._mosaic = mosaic
        self._padded = padded
        self._model = model
        self._regions = {name: _find_region(mosaic, name, grid, device) for name in mosaic.cameras}

    def count_pictures(self, num_cameras: int) -> int:
        """Return 1."""
        return 1

    def count_tokens(self, camera: str) -> int:
        """Return the number of tokens of the camera's region."""
        return len(self._regions[camera].indices)

    def check_cameras(self, cameras: Sequence[str]) -> None:
        """Raise `ConfigError` for a camera that the mosaic does not show."""
        for camera in cameras:
            if camera not in self._regions:
                raise ConfigError(
                    f'cameras: got {camera}, allowed with {self._model}: '
                    f'{", ".join(self._regions)}, which are stitched into one picture'
                )

    def to_pictures(self, frames: Sequence[DecodedFrame]) -> list[DecodedFrame]:
        """Stitch frames of one size; the place of a missing view stays black.

        Raises:
            ImageDecodeError: Frames of different sizes or channel orders.
        """
        first = frames[0]
        rows, columns = self._mosaic.shape
        height, width = first.pixels.shape[:2]
        picture = np.zeros((rows * height, columns * width, 3), np.uint8)
        for frame in frames:
            if _kind(frame) != _kind(first):
                raise ImageDecodeError.of(
                    frame.camera,
                    f'got {_kind(frame)}, but {first.camera} {_kind(first)}; {self._model} takes '
                    'one picture stitched from views of one size',
                )
            self._mosaic.crop(picture, frame.camera)[:] = frame.pixels
        return [DecodedFrame('mosaic', first.stamp_ns, picture, first.channel_order)]

    def split_states(self, states: Tensor, cameras: Sequence[str]) -> list[ViewBatch]:
        """Return one batch per camera: regions may differ in size."""
        regions = {camera: self._regions[camera] for camera in cameras}
        return [
            ViewBatch((camera,), states[:, region.indices], region.grid)
            for camera, region in regions.items()
        ]

    def to_picture_indices(self, camera: str, indices: Tensor) -> Tensor:
        """Map indices into the camera's region to indices into the picture."""
        return self._regions[camera].indices[indices]

    def merge_indices(
        self, keep_indices: Sequence[Tensor], cameras: Sequence[str]
    ) -> list[Tensor]:
        """Return the kept tokens of all cameras as one picture's, ascending."""
        return [torch.cat(list(keep_indices)).sort().values]

    def token_map(self, camera: str, height: int, width: int) -> npt.NDArray[np.int64]:
        """Return which token covers each pixel; see `Views`."""
        rows, columns = self._mosaic.shape
        whole = _token_map(self.grid, rows * height, columns * width, padded=self._padded)
        return self._mosaic.crop(whole, camera)


def make_views(
    mosaic: Mosaic | None, grid: Grid, *, padded: bool, device: torch.device, model: str
) -> Views:
    """Return the views of a model; for the arguments see `SeparateViews` and `MosaicViews`."""
    if mosaic is None:
        return SeparateViews(grid, padded=padded)
    return MosaicViews(mosaic, grid, padded=padded, device=device, model=model)


def _find_region(mosaic: Mosaic, camera: str, grid: Grid, device: torch.device) -> _Region:
    inside = [
        [i for i in range(tokens) if (2 * i + 1) * views // (2 * tokens) == place]
        for tokens, views, place in zip(grid, mosaic.shape, mosaic.place(camera), strict=True)
    ]
    rows, columns = (torch.tensor(side, device=device) for side in inside)
    indices = rows[:, None] * grid[1] + columns
    return _Region(indices.flatten(), (len(rows), len(columns)))


def _token_map(grid: Grid, height: int, width: int, *, padded: bool) -> npt.NDArray[np.int64]:
    rows, columns = grid
    full_height, full_width = height, width
    if padded:
        full_height = full_width = max(height, width)
    row_of_pixel = (np.arange(height) + (full_height - height) // 2) * rows // full_height
    column_of_pixel = (np.arange(width) + (full_width - width) // 2) * columns // full_width
    return np.asarray(row_of_pixel[:, None] * columns + column_of_pixel, np.int64)


def _kind(frame: DecodedFrame) -> str:
    height, width = frame.pixels.shape[:2]
    return f'{height} x {width} {frame.channel_order}'
