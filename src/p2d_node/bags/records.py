"""What a bag is made of: single camera images with their capture stamps."""

from __future__ import annotations

from dataclasses import dataclass

UNCALIBRATED = (0.0,) * 9
"""Camera matrix of a camera whose calibration is unknown, as sensor_msgs/CameraInfo defines it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BagImage:
    """One camera image on its way into a bag.

    Attributes:
        camera: Name of the camera.
        stamp_ns: Capture time, nanoseconds since the epoch.
        jpeg: The image file as it is.
        height: Pixels.
        width: Pixels.
        camera_matrix: 3x3 intrinsics, row by row; zeros where unknown.
    """

    camera: str
    stamp_ns: int
    jpeg: bytes
    height: int
    width: int
    camera_matrix: tuple[float, ...] = UNCALIBRATED
