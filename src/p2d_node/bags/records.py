"""What a bag holds: single camera images with their capture stamps, and their topics."""

from __future__ import annotations

from dataclasses import dataclass

UNCALIBRATED = (0.0,) * 9
"""Camera matrix of a camera whose calibration is unknown, as sensor_msgs/CameraInfo defines it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BagImage:
    """One camera image for a bag.

    Attributes:
        camera: Name of the camera.
        stamp_ns: Capture stamp, nanoseconds since the epoch.
        jpeg: Content of the JPEG file.
        height: Of the image, pixels.
        width: Of the image, pixels.
        camera_matrix: 3x3 intrinsics, row by row; zeros where unknown.
    """

    camera: str
    stamp_ns: int
    jpeg: bytes
    height: int
    width: int
    camera_matrix: tuple[float, ...] = UNCALIBRATED


def image_topic(camera: str, encoding: str) -> str:
    """Return the topic of a camera's images, as the preset `nuscenes` has it.

    Args:
        camera: Name of the camera.
        encoding: `jpeg` or `bgr8`.
    """
    return f'/{camera}/image_rect/compressed' if encoding == 'jpeg' else f'/{camera}/image_rect'
