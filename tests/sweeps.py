"""Generated sweeps for tests."""

from __future__ import annotations

import cv2
import numpy as np
from p2d_node.records import CameraFrame, CompressedImage, FrameSet, NUSCENES_CAMERAS

STAMP_NS = 1_533_280_036_162_460_000


def picture(seed: int = 0, height: int = 90, width: int = 160) -> np.ndarray:
    """A textured picture, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 16, 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(0, 20, image.shape, np.uint8)
    return cv2.add(image, noise)


def jpeg(pixels: np.ndarray) -> CompressedImage:
    """Pixels as the payload of a compressed camera topic."""
    return CompressedImage(format='jpeg', data=cv2.imencode('.jpg', pixels)[1].tobytes())


def make_frame_set(cameras: tuple[str, ...] = NUSCENES_CAMERAS, seed: int = 0) -> FrameSet:
    """A sweep of generated JPEGs."""
    frames = {
        camera: CameraFrame(camera, STAMP_NS + index * 1000, jpeg(picture(seed * 10 + index)))
        for index, camera in enumerate(cameras)
    }
    missing = tuple(name for name in NUSCENES_CAMERAS if name not in cameras)
    return FrameSet(
        stamp_ns=STAMP_NS, frames=frames, missing=missing, first_arrival_ns=0, closed_ns=0
    )
