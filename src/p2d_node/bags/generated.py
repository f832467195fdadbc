"""Generated camera images with nuScenes timing, where no recording is at hand.

Coloured boxes move over a textured ground: enough to see that a bag plays and that tokens are
chosen, nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt
from p2d_node.bags.records import BagImage
from p2d_node.config import NUSCENES_EXPOSURE_OFFSETS_MS

NS_PER_MS = 1_000_000
FIRST_STAMP_NS = 1_700_000_000_000_000_000
HORIZON = 0.45


def generate_images(
    num_sweeps: int,
    *,
    period_ms: float = 1000.0 / 12.0,
    height: int = 900,
    width: int = 1600,
    seed: int = 0,
) -> Iterator[BagImage]:
    """Yield the images of `num_sweeps` sweeps, by capture time."""
    rng = np.random.default_rng(seed)
    cameras = sorted(NUSCENES_EXPOSURE_OFFSETS_MS.items(), key=lambda item: item[1])
    backgrounds = {name: _background(rng, height, width) for name, _ in cameras}
    boxes = {name: rng.uniform(0.1, 0.9, (5, 5)) for name, _ in cameras}
    for sweep in range(num_sweeps):
        for name, offset_ms in cameras:
            stamp_ns = FIRST_STAMP_NS + round((sweep * period_ms + offset_ms) * NS_PER_MS)
            pixels = _draw_boxes(backgrounds[name].copy(), boxes[name], sweep)
            jpeg = cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
            yield BagImage(camera=name, stamp_ns=stamp_ns, jpeg=jpeg, height=height, width=width)


def _background(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.uint8]:
    coarse = rng.integers(70, 130, (height // 25, width // 25, 3), np.uint8)
    ground = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    sky_rows = int(height * HORIZON)
    ground[:sky_rows] = np.linspace((230, 190, 150), (240, 230, 220), sky_rows)[:, None]
    return np.asarray(ground, np.uint8)


def _draw_boxes(
    pixels: npt.NDArray[np.uint8], boxes: npt.NDArray[np.float64], sweep: int
) -> npt.NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    for index, (left, top, size, speed, hue) in enumerate(boxes):
        x = int((left + 0.01 * sweep * (speed - 0.5)) % 1.0 * width)
        y = int((HORIZON + 0.3 * top) * height)
        side = int((0.03 + 0.08 * size) * width)
        colour = [int(255 * abs(hue - 0.3 * (channel + index) % 1.0)) for channel in range(3)]
        cv2.rectangle(pixels, (x, y), (x + side, y + side // 2), colour, -1)
    return pixels
