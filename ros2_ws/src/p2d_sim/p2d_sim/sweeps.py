"""Scenario, seed and time come in; encoded camera frames with their exposure times go out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from p2d_node.config import NUSCENES_EXPOSURE_OFFSETS_MS
from p2d_node.errors import ConfigError

from p2d_sim.cameras import CAMERAS, FULL_HEIGHT_PX, FULL_WIDTH_PX
from p2d_sim.drawing import Renderer, View
from p2d_sim.scenarios import DURATION_S, make_scenario, SCENARIOS
from p2d_sim.traffic import snapshot_at
from p2d_sim.world import Scene, Snapshot

JPEG_QUALITY = 90
METRES_PER_PX = 0.08
MS_PER_S = 1000.0
SIDES_PX = (32, 4096)
"""Shortest and longest side of a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """One camera's picture in a sweep.

    Attributes:
        camera: Its name.
        offset_ms: After the sweep's first exposure.
    """

    camera: str
    offset_ms: float


def exposures(offsets_ms: Mapping[str, float] = NUSCENES_EXPOSURE_OFFSETS_MS) -> list[Exposure]:
    """Return the exposures of one sweep, in the order in which they happen."""
    ordered = sorted(offsets_ms.items(), key=lambda item: item[1])
    return [Exposure(camera=name, offset_ms=offset) for name, offset in ordered]


def check_seed(seed: int) -> None:
    """Check the seed of scenes, noise and losses.

    Raises:
        ConfigError: No generator of random numbers can start from it.
    """
    if seed < 0:
        raise ConfigError(f'--seed: got {seed}, allowed: 0 or more')


def check_size(height: int, width: int) -> None:
    """Check the size of pictures.

    Raises:
        ConfigError: Too small to show anything, or larger than any camera.
    """
    low, high = SIDES_PX
    if min(height, width) < low or max(height, width) > high:
        raise ConfigError(f'--size: got {width}x{height}, allowed: {low} to {high} pixels a side')


class World:
    """A scenario that begins anew, with the next seed, whenever it is over.

    Every camera sees the moment of its own exposure. May be used from several threads.
    """

    def __init__(
        self,
        scenario: str,
        seed: int,
        *,
        height: int = FULL_HEIGHT_PX,
        width: int = FULL_WIDTH_PX,
    ) -> None:
        """Choose scenario, first seed and picture size.

        Raises:
            ConfigError: No such scenario, or a seed or size that cannot be.
        """
        if scenario not in SCENARIOS:
            raise ConfigError(f'--scenario: got {scenario!r}, allowed: {", ".join(SCENARIOS)}')
        check_seed(seed)
        check_size(height, width)
        self.height, self.width = height, width
        self._scenario, self._seed = scenario, seed

    def scene_at(self, time_s: float) -> tuple[Scene, float]:
        """Return the scene that runs at `time_s`, and the time within it."""
        turn, within_s = divmod(time_s, DURATION_S)
        return make_scenario(self._scenario, self._seed + int(turn)), within_s

    def snapshot(self, time_s: float) -> Snapshot:
        """Return the world at `time_s`."""
        scene, within_s = self.scene_at(time_s)
        return snapshot_at(scene, within_s)

    def view(self, camera: str, time_s: float) -> View:
        """Draw what `camera` sees at `time_s`; the noise differs from moment to moment."""
        renderer = Renderer(self.snapshot(time_s), metres_per_px=METRES_PER_PX)
        noise_seed = round(time_s * 1000.0) * 8 + list(CAMERAS).index(camera)
        return renderer.draw(CAMERAS[camera], self.height, self.width, noise_seed=noise_seed)

    def camera_matrix(self, camera: str) -> tuple[float, ...]:
        """Return the 3 x 3 intrinsics of `camera`, row by row."""
        return tuple(CAMERAS[camera].intrinsics(self.height, self.width).ravel().tolist())

    def sweeps(self, period_ms: float) -> Iterator[list[tuple[Exposure, float]]]:
        """Yield, per sweep and without end, the exposures and their times in seconds."""
        number = 0
        while True:
            start_ms = number * period_ms
            yield [(e, (start_ms + e.offset_ms) / MS_PER_S) for e in exposures()]
            number += 1


def to_jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode RGB uint8 [height, width, 3]."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, data = cv2.imencode('.jpg', pixels[..., ::-1], quality)
    return data.tobytes()
