"""Scenario, seed and time come in; encoded camera frames with their exposure times go out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from p2d_node.config import NUSCENES_EXPOSURE_OFFSETS_MS
from p2d_node.errors import ConfigError

from p2d_sim.cameras import CAMERAS, FULL_HEIGHT_PX, FULL_WIDTH_PX
from p2d_sim.drawing import Renderer, View
from p2d_sim.limits import check_seed, check_size
from p2d_sim.scenarios import DURATION_S, make_scenario, SCENARIOS
from p2d_sim.traffic import snapshot_at
from p2d_sim.world import Scene, Snapshot

JPEG_QUALITY = 90
FIRST_STAMP_S = 1_700_000_000
"""Start of all recorded drives, seconds since the epoch."""

METRES_PER_PX = 0.08
"""Resolution of the ground at the full size of the cameras."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """One image of a sweep.

    Attributes:
        camera: Name of the camera.
        offset_ms: Time after the start of the sweep.
    """

    camera: str
    offset_ms: float


def exposures() -> list[Exposure]:
    """Return the exposures of one nuScenes sweep, in the order of time."""
    ordered = sorted(NUSCENES_EXPOSURE_OFFSETS_MS.items(), key=lambda item: item[1])
    return [Exposure(camera=name, offset_ms=offset) for name, offset in ordered]


class World:
    """An endless drive: when the scenario is over, it starts again with the next seed.

    May be used from several threads. Times are seconds since the start of the drive.
    """

    def __init__(
        self,
        scenario: str,
        seed: int,
        *,
        height: int = FULL_HEIGHT_PX,
        width: int = FULL_WIDTH_PX,
    ) -> None:
        """Choose the drive.

        Args:
            scenario: One of `SCENARIOS`.
            seed: Of the first run of the scenario.
            height: Of the images, pixels.
            width: Of the images, pixels.

        Raises:
            ConfigError: No such scenario, or seed or size out of range.
        """
        if scenario not in SCENARIOS:
            raise ConfigError(f'scenario: got {scenario!r}, allowed: {", ".join(SCENARIOS)}')
        check_seed(seed)
        check_size(height, width)
        self.height, self.width = height, width
        self._scenario, self._seed = scenario, seed

    def scene_at(self, time_s: float) -> tuple[Scene, float]:
        """Return the scene at `time_s`, and the time since the start of the scene."""
        turn, within_s = divmod(time_s, DURATION_S)
        return make_scenario(self._scenario, self._seed + int(turn)), within_s

    def snapshot(self, time_s: float) -> Snapshot:
        """Return the world at `time_s`."""
        scene, within_s = self.scene_at(time_s)
        return snapshot_at(scene, within_s)

    def view(self, camera: str, time_s: float) -> View:
        """Draw what `camera` sees at `time_s`; the noise depends on the time."""
        renderer = Renderer(self.snapshot(time_s), metres_per_px=METRES_PER_PX)
        noise_seed = round(time_s * 1000.0) * 8 + list(CAMERAS).index(camera)
        return renderer.draw(CAMERAS[camera], self.height, self.width, noise_seed=noise_seed)

    def camera_matrix(self, camera: str) -> tuple[float, ...]:
        """Return the 3 x 3 intrinsics of `camera`, row by row."""
        return tuple(CAMERAS[camera].intrinsics(self.height, self.width).ravel().tolist())

    def sweeps(self, period_ms: float) -> Iterator[list[tuple[Exposure, float]]]:
        """Yield sweeps without end, each as (exposure, its time)."""
        number = 0
        while True:
            start_ms = number * period_ms
            yield [(e, (start_ms + e.offset_ms) / 1000.0) for e in exposures()]
            number += 1


def to_jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode an image, RGB uint8 [height, width, 3], as JPEG."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, data = cv2.imencode('.jpg', pixels[..., ::-1], quality)
    return data.tobytes()
