"""Writes the best ratios as a parameter file of the drive node, with their origin as comments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from p2d_node.config import DriveConfig
from p2d_node.durable_files import write_bytes, write_faults
from p2d_node.errors import one_line
from p2d_node.tuning.search_space import ratio_of, SearchSpace
import yaml

SELECTION_FIELDS = ('selector', 'selection_scope', 'allocation', 'prune_layer')
"""Other parameters that decide which tokens are kept; written if they differ from the default."""

CLIP_FIELDS = ('frames_per_camera', 'frame_interval_ms')
"""Written if there are several frames: other clips have other tokens."""

STUDY_KEPT = 'choose another; the study is kept'
"""Next step if a result cannot be written."""


def write_retention_file(
    path: Path,
    ratios: Mapping[str, float],
    *,
    space: SearchSpace,
    config: DriveConfig,
    header: Sequence[str],
) -> None:
    """Write the file in one step.

    Args:
        path: The file, for `drive.launch.py params_file:=`; its folder is created.
        ratios: Camera to ratio; written as the shortest number that keeps as many tokens.
        space: Has the number of tokens of each camera.
        config: The pipeline that the ratios were searched for.
        header: Lines of comment about their origin.

    Raises:
        ConfigError: The file cannot be written.
    """
    kept = space.tokens_kept(ratios)
    defaults = DriveConfig()
    parameters: dict[str, Any] = {
        name: getattr(config, name)
        for name in SELECTION_FIELDS
        if getattr(config, name) != getattr(defaults, name)
    }
    if config.frames_per_camera > 1:
        parameters |= {name: getattr(config, name) for name in CLIP_FIELDS}
    parameters['retention_ratio'] = {
        camera: ratio_of(kept[camera], total) for camera, total in space.num_tokens.items()
    }
    body = yaml.safe_dump({'/**': {'ros__parameters': parameters}}, sort_keys=False)
    comments = ''.join(f'# {one_line(line)}\n' for line in header)
    with write_faults(f'params_out: {path}', STUDY_KEPT):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, f'{comments}{body}'.encode())


def utc_now() -> str:
    """Return the date and time for a header."""
    return datetime.now(tz=timezone.utc).strftime('%Y-%m-%d %H:%M UTC')
