"""Calibration and projection of six pinhole cameras, mounted as those of nuScenes."""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np
import numpy.typing as npt

FULL_HEIGHT_PX = 900
FULL_WIDTH_PX = 1600
CENTRE_PX = (800.0, 480.0)
"""Principal point x, y of the full-size image; a little below the middle, as in nuScenes."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """A camera on the ego vehicle, level, without distortion.

    Attributes:
        name: Name in nuScenes.
        yaw: Direction of view, radians, 0 ahead, positive to the left.
        position_m: x, y, z on the ego vehicle.
        focal_px: Focal length in the full-size image.
    """

    name: str
    yaw: float
    position_m: tuple[float, float, float]
    focal_px: float

    @property
    def fov(self) -> float:
        """Horizontal field of view, radians."""
        return 2.0 * math.atan(FULL_WIDTH_PX / 2 / self.focal_px)

    def rotation(self) -> FloatArray:
        """Return the [3, 3] matrix from ego axes to camera axes (right, down, forward)."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return np.array([[s, -c, 0.0], [0.0, 0.0, -1.0], [c, s, 0.0]])

    def intrinsics(self, height: int, width: int) -> FloatArray:
        """Return the [3, 3] camera matrix of an image that is resized to `height` x `width`."""
        sx, sy = width / FULL_WIDTH_PX, height / FULL_HEIGHT_PX
        return np.array(
            [
                [self.focal_px * sx, 0.0, CENTRE_PX[0] * sx],
                [0.0, self.focal_px * sy, CENTRE_PX[1] * sy],
                [0.0, 0.0, 1.0],
            ]
        )

    def to_camera(self, points: FloatArray) -> FloatArray:
        """Map ego points [..., 3] to camera axes [..., 3] (right, down, forward), metres."""
        turned: FloatArray = (points - np.array(self.position_m)) @ self.rotation().T
        return turned


def _camera(
    name: str, yaw_deg: float, position_m: tuple[float, float, float], focal: float
) -> Camera:
    return Camera(name=name, yaw=math.radians(yaw_deg), position_m=position_m, focal_px=focal)


CAMERAS = {
    camera.name: camera
    for camera in (
        _camera('CAM_FRONT', 0.0, (1.70, 0.0, 1.51), 1260.0),
        _camera('CAM_FRONT_LEFT', 55.0, (1.52, 0.49, 1.51), 1260.0),
        _camera('CAM_FRONT_RIGHT', -55.0, (1.52, -0.49, 1.51), 1260.0),
        _camera('CAM_BACK', 180.0, (0.03, 0.0, 1.57), 800.0),
        _camera('CAM_BACK_LEFT', 110.0, (1.04, 0.48, 1.57), 1260.0),
        _camera('CAM_BACK_RIGHT', -110.0, (1.04, -0.48, 1.57), 1260.0),
    )
}
"""Rounded from the calibration of nuScenes; fields of view of 65 degrees, at the back 90."""
