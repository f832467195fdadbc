"""The nuScenes tables come in; the camera images go out in the order of their capture stamps."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
import math
import os
from pathlib import Path
from typing import Any

from p2d_node.bags.image_files import file_below, FilesOnce, read_image
from p2d_node.bags.records import BagImage, UNCALIBRATED
from p2d_node.durable_files import read_json
from p2d_node.errors import ConfigError, format_faults, quote
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.units import MAX_STAMP_NS, NS_PER_S, NS_PER_US

TABLES = ('scene', 'sample', 'sample_data', 'calibrated_sensor', 'sensor')
Row = dict[str, Any]

MAX_NAMES = 20
"""In a message; the whole data set has 850 scenes."""

MAX_TABLE_BYTES = 2 << 30
"""sample_data.json of the whole data set has 1.3 GB."""

EARLIEST_NS = 946_684_800 * NS_PER_S
"""The year 2000: an earlier stamp is in seconds or milliseconds, not in microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NuscenesSelection:
    """Which part of the data set to read.

    Attributes:
        version: Folder of the tables, e.g. `v1.0-mini`; empty: the only one there is.
        scene: Name of the scene, e.g. `scene-0061`; empty: all scenes.
        keyframes_only: Leave out the sweeps between the annotated keyframes.
    """

    version: str = ''
    scene: str = ''
    keyframes_only: bool = False


def read_nuscenes_images(root: Path, selection: NuscenesSelection) -> Iterator[BagImage]:
    """Yield the images of the six cameras in the order of their capture stamps.

    Args:
        root: Root of the data set, with `<version>/*.json`, `samples/` and `sweeps/`.
        selection: Which part to read.

    Raises:
        ConfigError: A table, scene or image is missing, or not in the format of nuScenes.
    """
    with format_faults(root, 'nuScenes tables', 'check the download'):
        tables = _read_tables(root, selection.version)
        images = sorted(_select_rows(tables, selection), key=lambda image: _stamp_ns(image[0]))
        files = FilesOnce()
        for row, camera, sensor in images:
            path = file_below(root, row['filename'])
            if not os.path.exists(path):
                raise ConfigError(f'{path} is missing; {_advice(root, tables, images, selection)}')
            files.add(path, row['filename'])
            yield read_image(
                path,
                root=root,
                camera=camera,
                stamp_ns=_stamp_ns(row),
                camera_matrix=_camera_matrix(sensor),
            )


def _advice(
    root: Path,
    tables: dict[str, list[Row]],
    images: list[tuple[Row, str, Row]],
    selection: NuscenesSelection,
) -> str:
    """Return which option works with a data set that was downloaded only in part."""
    missing = [row for row, *_ in images if not os.path.exists(root / row['filename'])]
    if not any(row['is_key_frame'] for row in missing):
        return 'set keyframes_only, which needs no sweeps/'
    if selection.scene:
        return 'name a scene that was downloaded, or download the rest'
    scene_of = {row['token']: row['scene_token'] for row in tables['sample']}
    incomplete = {scene_of[row['sample_token']] for row in missing}
    complete = [row['name'] for row in tables['scene'] if row['token'] not in incomplete]
    if not complete:
        return 'check that samples/ and sweeps/ lie beside the tables'
    return f'name a scene that was downloaded completely: {", ".join(sorted(complete)[:5])}'


def _stamp_ns(row: Row) -> int:
    """Return the capture stamp of a row of `sample_data`, nanoseconds since the epoch."""
    stamp = row['timestamp']
    if not isinstance(stamp, int) or not EARLIEST_NS <= stamp * NS_PER_US <= MAX_STAMP_NS:
        raise ValueError(
            f'sample_data.json: timestamp: got {quote(stamp)}, allowed: whole microseconds since '
            'the epoch, from 2000 to 2037'
        )
    return stamp * NS_PER_US


def _camera_matrix(sensor: Row) -> tuple[float, ...]:
    """Return the intrinsics of a row of `calibrated_sensor`, row by row."""
    lines = sensor['camera_intrinsic']
    values = tuple(float(value) for line in lines for value in line)
    is_3x3 = len(lines) == 3 and all(len(line) == 3 for line in lines)
    if lines and not (is_3x3 and all(map(math.isfinite, values))):
        raise ValueError(
            f'calibrated_sensor.json: camera_intrinsic: got {quote(lines)}, allowed: 3 rows of 3 '
            'finite numbers, or an empty list'
        )
    return values or UNCALIBRATED


def _read_tables(root: Path, version: str) -> dict[str, list[Row]]:
    if not version:
        versions = sorted(path.parent.name for path in root.glob('v*/sample_data.json'))
        if not versions:
            raise ConfigError(
                f'nuscenes: got {str(root)!r}, which has no tables; allowed: a folder with '
                '<version>/sample_data.json, samples/ and sweeps/'
            )
        if len(versions) > 1:
            raise ConfigError(
                f'version: got none, but {root} has {len(versions)} versions; allowed: '
                f'{_first(versions)}'
            )
        version = versions[0]
    if not (root / version).is_dir() or Path(version).name != version:
        raise ConfigError(
            f'version: got {version!r}, allowed: the name of a folder in {root}, e.g. v1.0-mini'
        )
    files = {name: file_below(root, f'{version}/{name}.json') for name in TABLES}
    return {name: read_json(file, max_bytes=MAX_TABLE_BYTES) for name, file in files.items()}


def _select_rows(
    tables: dict[str, list[Row]], selection: NuscenesSelection
) -> list[tuple[Row, str, Row]]:
    """Return (sample_data row, camera, calibrated_sensor row) of the selected images."""
    scenes = {row['token']: row['name'] for row in tables['scene']}
    if selection.scene and selection.scene not in scenes.values():
        raise ConfigError(
            f'scene: got {quote(selection.scene)}, allowed: {_first(scenes.values())}'
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


def _first(names: Collection[str]) -> str:
    """Return the first names for a message."""
    some = ', '.join(map(quote, sorted(names)[:MAX_NAMES]))
    more = len(names) - MAX_NAMES
    return f'{some} and {more} more' if more > 0 else some
