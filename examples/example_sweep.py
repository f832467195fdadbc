"""A drawn sweep for the examples: six images of p2d_sim, one per camera, as a `FrameSet`."""

import time

from p2d_node.records import CameraFrame, CompressedImage, FrameSet, NUSCENES_CAMERAS
from p2d_sim.sweeps import to_jpeg, World


def draw_images(time_s: float = 8.0) -> dict[str, bytes]:
    """Return camera to JPEG at `time_s` seconds of a drive in which the vehicle ahead brakes."""
    world = World('lead-brakes', seed=0)
    return {camera: to_jpeg(world.view(camera, time_s).pixels) for camera in NUSCENES_CAMERAS}


def draw_sweep(time_s: float = 8.0) -> FrameSet:
    """Return the same images as a sweep."""
    frames = {
        camera: CameraFrame(camera, stamp_ns=0, payload=CompressedImage(format='jpeg', data=data))
        for camera, data in draw_images(time_s).items()
    }
    now_ns = time.monotonic_ns()
    return FrameSet(stamp_ns=0, frames=frames, first_arrival_ns=now_ns, closed_ns=now_ns)
