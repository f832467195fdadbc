"""Draws the sky, and applies light, rain and sensor noise to an image."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from p2d_sim.cameras import Camera
from p2d_sim.world import Snapshot

SKIES = {
    'day': ((96, 150, 215), (205, 222, 238)),
    'dusk': ((70, 66, 110), (240, 160, 110)),
    'rain': ((120, 126, 134), (168, 172, 176)),
}
"""Colour at the zenith and at the horizon, RGB."""

TONES = {'day': (1.0, 1.0, 1.0), 'dusk': (0.74, 0.62, 0.66), 'rain': (0.76, 0.79, 0.83)}
"""Factor per channel on the whole image."""

NOISE_LEVEL = 4.0
"""Standard deviation of the sensor noise, grey levels."""

Picture = npt.NDArray[np.uint8]


def draw_sky(rows: Picture, snapshot: Snapshot, camera: Camera) -> None:
    """Fill `rows`, uint8 [rows above the horizon, width, 3], with sky and clouds."""
    zenith, horizon = SKIES[snapshot.scene.conditions]
    height, width = rows.shape[:2]
    blend = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None] ** 1.5
    gradient = np.array(zenith) * (1.0 - blend) + np.array(horizon) * blend
    rows[:] = gradient.astype(np.uint8)[:, None]
    clouds = _clouds()
    start = (snapshot.scene.seed * 37 + round(camera.yaw * 100)) % (clouds.shape[1] // 2)
    part = clouds[:, start : start + clouds.shape[1] // 2]
    stretched = cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)
    cv2.addWeighted(rows, 1.0, stretched, 1.0, -128.0, dst=rows)


@lru_cache(maxsize=1)
def _clouds() -> Picture:
    rng = np.random.default_rng(11)
    field = np.zeros((96, 512), np.float32)
    for cells, amplitude in (((6, 12), 14.0), ((16, 40), 9.0), ((48, 120), 5.0)):
        coarse = rng.normal(0.0, 1.0, cells).astype(np.float32)
        field += amplitude * cv2.resize(coarse, (512, 96), interpolation=cv2.INTER_CUBIC)
    tile = np.clip(field + 128.0, 0, 255).astype(np.uint8)
    return np.repeat(tile[..., None], 3, axis=2)


def apply_weather(pixels: Picture, conditions: str, rng: np.random.Generator) -> Picture:
    """Return `pixels`, RGB uint8 [height, width, 3], under `conditions` and with sensor noise."""
    height, width = pixels.shape[:2]
    tone: Any = (*TONES[conditions], 1.0)
    toned = np.asarray(cv2.multiply(pixels, tone), np.uint8)
    if conditions == 'rain':
        _draw_streaks(toned, rng)
    grain = _grain(height, width)
    y, x = rng.integers(0, 64, 2)
    grain = grain[y : y + height, x : x + width]
    return np.asarray(cv2.addWeighted(toned, 1.0, grain, 1.0, -128.0), np.uint8)


def _draw_streaks(pixels: Picture, rng: np.random.Generator) -> None:
    height, width = pixels.shape[:2]
    starts = rng.uniform(0.0, 1.0, (70, 2)) * (width, height)
    ends = starts + np.array([0.008 * width, 0.06 * height]) * rng.uniform(0.6, 1.4, (70, 1))
    lines = np.stack([starts, ends], axis=1).astype(np.int32)
    overlay = pixels.copy()
    cv2.polylines(overlay, list(lines), False, (200, 204, 210), max(1, width // 500), cv2.LINE_AA)
    cv2.addWeighted(overlay, 0.4, pixels, 0.6, 0.0, dst=pixels)


@lru_cache(maxsize=8)
def _grain(height: int, width: int) -> Picture:
    rng = np.random.default_rng(13)
    field = rng.normal(128.0, NOISE_LEVEL, (height + 64, width + 64, 3))
    return np.clip(field, 0, 255).astype(np.uint8)
