"""What a bag holds: single camera images with their capture stamps, and their topics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2d_node.records import CameraFrame, CompressedImage, FrameSet, NUSCENES_CAMERAS

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


def to_frame_set(images: Iterable[BagImage]) -> FrameSet:
    """Return the images of one sweep of the six cameras as its cameras would have sent them."""
    of = {image.camera: image for image in images}
    frames = {
        camera: CameraFrame(
            camera, of[camera].stamp_ns, CompressedImage(format='jpeg', data=of[camera].jpeg)
        )
        for camera in NUSCENES_CAMERAS
    }
    stamp_ns = frames[NUSCENES_CAMERAS[0]].stamp_ns
    return FrameSet(stamp_ns=stamp_ns, frames=frames, first_arrival_ns=0, closed_ns=0)


def image_topic(camera: str, encoding: str) -> str:
    """Return the topic of a camera's images, as the preset `nuscenes` has it.

    Args:
        camera: Name of the camera.
        encoding: `jpeg` or `bgr8`.
    """
    return f'/{camera}/image_rect/compressed' if encoding == 'jpeg' else f'/{camera}/image_rect'
