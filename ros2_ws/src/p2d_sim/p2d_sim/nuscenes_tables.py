"""Rows of the nuScenes tables while they are collected, and the rows that all scenes share."""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from p2d_sim.cameras import Camera, CAMERAS

CATEGORY_NAMES = {
    'car': 'vehicle.car',
    'truck': 'vehicle.truck',
    'bus': 'vehicle.bus.rigid',
    'cyclist': 'vehicle.bicycle',
    'pedestrian': 'human.pedestrian.adult',
    'cone': 'movable_object.trafficcone',
    'barrier': 'movable_object.barrier',
}
ATTRIBUTE_NAMES = {
    'moving': 'vehicle.moving',
    'braking': 'vehicle.moving',
    'parked': 'vehicle.parked',
    'walking': 'pedestrian.moving',
    'standing': 'pedestrian.standing',
}
VISIBILITIES = {'1': 'v0-40', '2': 'v40-60', '3': 'v60-80', '4': 'v80-100'}
Row = dict[str, Any]


def token(*parts: object) -> str:
    """Return a nuScenes token, 32 hex digits, the same for the same parts."""
    text = '/'.join(map(str, parts))
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class NuscenesTables:
    """Collects the rows of all tables. Not thread-safe."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Row]] = {}

    def add(self, table: str, *parts: object, **columns: Any) -> Row:
        """Add a row with the token of `table` and `parts`; returns the row."""
        row = {'token': token(table, *parts), **columns}
        self._rows.setdefault(table, []).append(row)
        return row

    def add_visibilities(self) -> None:
        """Add the levels of visibility, whose tokens are fixed numbers."""
        self._rows['visibility'] = [
            {'token': number, 'level': level, 'description': f'visibility {level}'}
            for number, level in VISIBILITIES.items()
        ]

    def write(self, folder: Path) -> None:
        """Write one JSON file per table into `folder`, which must not exist."""
        folder.mkdir(parents=True)
        for table, rows in self._rows.items():
            text = json.dumps(rows, indent=0)
            (folder / f'{table}.json').write_text(text, encoding='utf-8')


def link_rows(rows: Sequence[Row]) -> None:
    """Fill `prev` and `next` with the tokens of the rows before and after; '' at both ends."""
    tokens = ['', *(row['token'] for row in rows), '']
    for row, before, after in zip(rows, tokens, tokens[2:], strict=False):
        row['prev'], row['next'] = before, after


def add_shared_rows(tables: NuscenesTables, *, height: int, width: int) -> dict[str, str]:
    """Add categories, attributes, visibilities and cameras.

    Args:
        tables: Where the rows go.
        height: Of the images, pixels.
        width: Of the images, pixels.

    Returns:
        Camera name to the token of its calibrated sensor.
    """
    for kind, name in CATEGORY_NAMES.items():
        tables.add('category', kind, name=name, description=f'A {kind}.')
    for name in dict.fromkeys(ATTRIBUTE_NAMES.values()):
        tables.add('attribute', name, name=name, description=name.replace('.', ' '))
    tables.add_visibilities()
    calibrated = {}
    for camera in CAMERAS.values():
        sensor = tables.add('sensor', camera.name, channel=camera.name, modality='camera')
        row = tables.add(
            'calibrated_sensor',
            camera.name,
            sensor_token=sensor['token'],
            translation=list(camera.position_m),
            rotation=camera_quaternion(camera),
            camera_intrinsic=camera.intrinsics(height, width).tolist(),
        )
        calibrated[camera.name] = row['token']
    return calibrated


def camera_quaternion(camera: Camera) -> list[float]:
    """Return w, x, y, z of the rotation from camera axes to ego axes."""
    half = camera.yaw / 2
    w, z = math.cos(half), math.sin(half)
    # The change of axes (right, down, forward) to (x, y, z) first, then the turn about z.
    return _multiply([w, 0.0, 0.0, z], [0.5, -0.5, 0.5, -0.5])


def _multiply(a: list[float], b: list[float]) -> list[float]:
    (aw, ax, ay, az), (bw, bx, by, bz) = a, b
    return [
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    ]
