"""The ground around the ego vehicle, as a textured image from above."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from p2d_sim.world import (
    CROSSING_M,
    LANE_M,
    ROAD_HALF_M,
    Snapshot,
    STRIP_HALF_M,
    WALK_HALF_M,
)

AHEAD_M = 45.0
SIDE_M = 30.0
"""Distance that the image covers ahead and behind, and to each side."""

TILE_M = 40.0
"""Period of the texture; divides the ring."""

PAINT = (225, 225, 220)
Picture = npt.NDArray[np.uint8]


def draw_ground(snapshot: Snapshot, metres_per_px: float) -> Picture:
    """Return the ground from above, RGB uint8 [rows, columns, 3].

    Columns run along x from -45 m to 45 m, rows along y from 30 m to -30 m.
    """
    columns, rows = round(2 * AHEAD_M / metres_per_px), round(2 * SIDE_M / metres_per_px)
    ground = np.empty((rows, columns, 3), np.uint8)
    canvas = _Canvas(ground, metres_per_px)
    surfaces = snapshot.scene.surfaces
    canvas.fill(-AHEAD_M, AHEAD_M, -SIDE_M, SIDE_M, surfaces.verge)
    canvas.fill(-AHEAD_M, AHEAD_M, -WALK_HALF_M, WALK_HALF_M, surfaces.pavement)
    kerb = tuple(int(0.7 * value) for value in surfaces.pavement)
    canvas.fill(-AHEAD_M, AHEAD_M, -STRIP_HALF_M - 0.25, STRIP_HALF_M + 0.25, kerb)
    strip = tuple(min(255, int(1.1 * value)) for value in surfaces.asphalt)
    canvas.fill(-AHEAD_M, AHEAD_M, -STRIP_HALF_M, STRIP_HALF_M, strip)
    canvas.fill(-AHEAD_M, AHEAD_M, -ROAD_HALF_M, ROAD_HALF_M, surfaces.asphalt)
    _paint_lanes(canvas, snapshot)
    if snapshot.signal_x_m is not None:
        _paint_junction(canvas, snapshot.signal_x_m, surfaces.asphalt)
    return _add_texture(ground, snapshot, metres_per_px)


class _Canvas:
    """Fills rectangles given in metres."""

    def __init__(self, ground: Picture, metres_per_px: float) -> None:
        self._ground = ground
        self._scale = 1.0 / metres_per_px

    def fill(self, x0: float, x1: float, y0: float, y1: float, colour: tuple[int, ...]) -> None:
        """Fill x0..x1, y0..y1 with `colour`."""
        columns = self._clip((x0 + AHEAD_M) * self._scale, (x1 + AHEAD_M) * self._scale, 1)
        rows = self._clip((SIDE_M - y1) * self._scale, (SIDE_M - y0) * self._scale, 0)
        self._ground[rows, columns] = colour

    def _clip(self, low: float, high: float, axis: int) -> slice:
        limit = self._ground.shape[axis]
        first = min(max(round(low), 0), limit)
        return slice(first, min(max(round(high), first), limit))


def _paint_lanes(canvas: _Canvas, snapshot: Snapshot) -> None:
    for y in (-ROAD_HALF_M, ROAD_HALF_M):
        canvas.fill(-AHEAD_M, AHEAD_M, y - 0.08, y + 0.08, PAINT)
    middle = (210, 170, 40) if snapshot.scene.oncoming_left else PAINT
    start = -AHEAD_M - (snapshot.ego_x_m - AHEAD_M) % 8.0
    for x in np.arange(start, AHEAD_M, 8.0):
        canvas.fill(x, x + 3.5, -LANE_M / 2 - 0.09, -LANE_M / 2 + 0.09, PAINT)
        if not snapshot.scene.oncoming_left:
            canvas.fill(x, x + 3.5, LANE_M / 2 - 0.09, LANE_M / 2 + 0.09, PAINT)
        for side in (-1, 1):
            y = side * (ROAD_HALF_M + STRIP_HALF_M) / 2
            canvas.fill(x, x + 0.12, y - 1.3, y + 1.3, PAINT)
    if snapshot.scene.oncoming_left:
        canvas.fill(-AHEAD_M, AHEAD_M, LANE_M / 2 - 0.1, LANE_M / 2 + 0.1, middle)


def _paint_junction(canvas: _Canvas, x: float, asphalt: tuple[int, int, int]) -> None:
    canvas.fill(x + 4.0, x + 4.0 + CROSSING_M, -SIDE_M, SIDE_M, asphalt)
    canvas.fill(x, x + 0.45, -ROAD_HALF_M, LANE_M / 2, PAINT)
    for y in np.arange(-ROAD_HALF_M + 0.2, ROAD_HALF_M - 0.5, 1.0):
        canvas.fill(x + 1.0, x + 3.4, y, y + 0.5, PAINT)


def _add_texture(ground: Picture, snapshot: Snapshot, metres_per_px: float) -> Picture:
    tile = _texture(metres_per_px)
    period = tile.shape[1] // 4
    shift = (snapshot.ego_x_m + snapshot.scene.surfaces.offset_m) % TILE_M
    start = round(shift / metres_per_px) % period
    rows, columns = ground.shape[:2]
    part = tile[:rows, start : start + columns]
    return np.asarray(cv2.addWeighted(ground, 1.0, part, 1.0, -128.0), np.uint8)


@lru_cache(maxsize=8)
def _texture(metres_per_px: float) -> Picture:
    """Return grain, stains and slab joints around 128, uint8 [3 periods, 4 periods, 3]."""
    size = round(TILE_M / metres_per_px)
    rng = np.random.default_rng(7)
    field = np.zeros((size, size), np.float32)
    for cell_m, amplitude in ((0.15, 7.0), (0.6, 8.0), (2.5, 9.0)):
        cells = max(4, round(TILE_M / cell_m))
        coarse = rng.normal(0.0, 1.0, (cells, cells)).astype(np.float32)
        if cells <= size:
            field += amplitude * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        else:
            field += amplitude * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_AREA)
    _stain(field, rng, metres_per_px)
    tile = np.clip(np.tile(field, (3, 4)) + 128.0, 0, 255).astype(np.uint8)
    return np.repeat(tile[..., None], 3, axis=2)


def _stain(field: npt.NDArray[np.float32], rng: np.random.Generator, metres_per_px: float) -> None:
    size = field.shape[0]
    for _ in range(60):
        x, y = rng.integers(0, size, 2)
        axes = (rng.uniform(0.2, 1.2, 2) / metres_per_px).astype(int) + 1
        angle, depth = float(rng.uniform(0, 180)), float(rng.uniform(-26, 14))
        overlay = np.zeros_like(field)
        cv2.ellipse(overlay, (int(x), int(y)), (int(axes[0]), int(axes[1])), angle, 0, 360, 1, -1)
        field += depth * overlay
    for _ in range(40):
        a = rng.integers(0, size, 2)
        b = a + rng.integers(-size // 12, size // 12, 2)
        width = max(1, round(0.07 / metres_per_px))
        cv2.line(field, (int(a[0]), int(a[1])), (int(b[0]), int(b[1])), -34.0, width)
