"""Clips of the verbs that answer about data."""

from __future__ import annotations

from dataclasses import replace

from p2d_node.assembly import with_clip_of_model
from p2d_node.config import DriveConfig


def with_clip_options(
    config: DriveConfig, *, frames_per_camera: int | None, frame_interval_ms: float | None
) -> DriveConfig:
    """Return `config` with the options that are given, and else what the model folder says.

    Args:
        config: Of the parameter file.
        frames_per_camera: As in `DriveConfig`; None: as there.
        frame_interval_ms: As in `DriveConfig`; None: as there.

    Raises:
        ConfigError: The model folder cannot be used.
    """
    if frames_per_camera is not None:
        config = replace(config, frames_per_camera=frames_per_camera)
    if frame_interval_ms is not None:
        config = replace(config, frame_interval_ms=frame_interval_ms)
    return with_clip_of_model(config)
