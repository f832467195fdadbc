"""The nuScenes tables come in; the camera images of its scenes come out, by capture time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2d_node.bags.drivelm import NS_PER_US, read_image, read_json
from p2d_node.bags.records import BagImage, UNCALIBRATED
from p2d_node.errors import ConfigError
from p2d_node.records import NUSCENES_CAMERAS

TABLES = ('scene', 'sample', 'sample_data', 'calibrated_sensor', 'sensor')


@dataclass(frozen=True, slots=True, kw_only=True)
class NuscenesSelection:
    """Which part of the data set goes into a bag.

    Attributes:
        version: Folder of the tables, e.g. `v1.0-mini`; empty: the only one there is.
        scene: Name of the scene, e.g. `scene-0061`; empty: all scenes.
        keyframes_only: Leave out the sweeps between the annotated keyframes.
    """

    version: str = ''
    scene: str = ''
    keyframes_only: bool = False


def read_nuscenes_images(root: Path, selection: NuscenesSelection) -> Iterator[BagImage]:
    """Yield the images of the six cameras, by capture time.

    Args:
        root: Data set root with `<version>/*.json`, `samples/` and `sweeps/`.
        selection: Which part.

    Raises:
        ConfigError: A table, scene or image that is missing or not what it should be.
    """
    tables = _read_tables(root, selection.version)
    try:
        rows = _select_rows(tables, selection)
        for row, camera, sensor in sorted(rows, key=lambda item: item[0]['timestamp']):
            intrinsic = [value for line in sensor['camera_intrinsic'] for value in line]
            yield read_image(
                root / row['filename'],
                camera=camera,
                stamp_ns=int(row['timestamp']) * NS_PER_US,
                camera_matrix=tuple(map(float, intrinsic)) or UNCALIBRATED,
            )
    except (KeyError, TypeError) as err:
        raise ConfigError(
            f'{root}: not nuScenes tables: {type(err).__name__}: {err}; check the download'
        ) from err


def _read_tables(root: Path, version: str) -> dict[str, list[dict[str, Any]]]:
    if not version:
        versions = sorted(path.parent.name for path in root.glob('v*/sample_data.json'))
        if len(versions) != 1:
            raise ConfigError(
                f'{root}: got {len(versions)} versions ({", ".join(versions) or "no tables"}), '
                'allowed: one, or name it with --version'
            )
        version = versions[0]
    return {name: read_json(root / version / f'{name}.json') for name in TABLES}


def _select_rows(
    tables: dict[str, list[dict[str, Any]]], selection: NuscenesSelection
) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    """Return (sample_data row, camera, calibrated_sensor row) of the selected images."""
    scenes = {row['token']: row['name'] for row in tables['scene']}
    if selection.scene and selection.scene not in scenes.values():
        raise ConfigError(
            f'scene: got {selection.scene!r}, allowed: {", ".join(sorted(scenes.values()))}'
        )
    samples = {
        row['token']
        for row in tables['sample']
        if selection.scene in ('', scenes.get(row['scene_token']))
    }
    channels = {row['token']: row['channel'] for row in tables['sensor']}
    sensors = {row['token']: row for row in tables['calibrated_sensor']}
    rows = []
    for row in tables['sample_data']:
        sensor = sensors[row['calibrated_sensor_token']]
        camera = channels[sensor['sensor_token']]
        wanted = row['is_key_frame'] or not selection.keyframes_only
        if camera in NUSCENES_CAMERAS and row['sample_token'] in samples and wanted:
            rows.append((row, camera, sensor))
    return rows
