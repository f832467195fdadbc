"""Scenarios come in; a folder in the nuScenes format, with DriveLM's questions, goes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from p2d_node.bags.writing import NO_ROOM_REMEDY
from p2d_node.durable_files import write_faults
from p2d_node.errors import ConfigError

from p2d_sim.cameras import Camera, CAMERAS, FULL_HEIGHT_PX, FULL_WIDTH_PX
from p2d_sim.drawing import Renderer, View
from p2d_sim.drivelm_json import ask_snapshot, describe_scene, key_frame, write_drivelm
from p2d_sim.scenarios import DURATION_S, make_scenario
from p2d_sim.scenes import make_scene
from p2d_sim.sweeps import check_seed, check_size, exposures, METRES_PER_PX, to_jpeg
from p2d_sim.traffic import snapshot_at
from p2d_sim.world import (
    ActorState,
    HEIGHT_M,
    LENGTH_M,
    RING_M,
    Scene,
    Snapshot,
    STRIP_HALF_M,
    WALK_HALF_M,
    WIDTH_M,
)

VERSION = 'v1.0-mini'
FIRST_STAMP_US = 1_700_000_000_000_000
SCENE_GAP_US = 60_000_000
US_PER_S = 1_000_000
KEYFRAME_PERIOD_S = 0.5
"""nuScenes annotates at 2 Hz."""

MAP_METRES_PER_PX = 0.1
RANGE_M = 50.0
"""Actors farther away are not annotated."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderOptions:
    """What goes into the folder.

    Attributes:
        scenarios: Names, one scene each.
        random_scenes: Number of scenes after them as p2d-mini is trained on; for evaluations the
            seed should be one that training never reaches.
        seed: Of the first scene; the next ones follow.
        duration_s: Length of each scene.
        height: Of the pictures.
        width: Of the pictures.
    """

    scenarios: tuple[str, ...] = ()
    random_scenes: int = 0
    seed: int = 0
    duration_s: float = DURATION_S
    height: int = FULL_HEIGHT_PX
    width: int = FULL_WIDTH_PX

    def __post_init__(self) -> None:
        """Check the values."""
        if self.random_scenes < 0:
            raise ConfigError(f'--random-scenes: got {self.random_scenes}, allowed: 0 or more')
        if not self.scenarios and not self.random_scenes:
            raise ConfigError('--scenario: got none, allowed: one or more, or --random-scenes')
        if not KEYFRAME_PERIOD_S <= self.duration_s <= DURATION_S:
            raise ConfigError(
                f'--duration: got {self.duration_s:g}, allowed: {KEYFRAME_PERIOD_S:g} to '
                f'{DURATION_S:g} seconds'
            )
        check_seed(self.seed)
        check_size(self.height, self.width)

    def make_scenes(self) -> Iterator[tuple[str, Scene]]:
        """Yield every scene with the name of its kind."""
        for number, name in enumerate(self.scenarios):
            yield name, make_scenario(name, self.seed + number)
        for number in range(len(self.scenarios), len(self.scenarios) + self.random_scenes):
            yield 'random', make_scene(self.seed + number)


def token(*parts: object) -> str:
    """Return a nuScenes token, 32 hex digits, the same for the same parts."""
    text = '/'.join(map(str, parts))
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@dataclass(slots=True)
class _Tables:
    """The tables while they grow; `rows` by table name."""

    rows: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, table: str, *parts: object, **columns: Any) -> str:
        """Add a row whose token is made of `parts`; returns the token."""
        name = token(table, *parts)
        self.rows.setdefault(table, []).append({'token': name, **columns})
        return name

    def link(self, table: str) -> None:
        """Fill `prev` and `next` of the rows that were added last as one chain."""
        chain = [row for row in self.rows.get(table, []) if row['prev'] is None]
        for before, after in zip([None, *chain], [*chain, None], strict=True):
            if before is not None:
                before['next'] = after['token'] if after else ''
            if after is not None:
                after['prev'] = before['token'] if before else ''


def write_nuscenes_folder(root: Path, options: FolderOptions) -> Iterator[int]:
    """Write tables, pictures and `drivelm.json`; yields the pictures written so far.

    Args:
        root: Folder to create; an existing one must be empty.
        options: What goes in.

    Raises:
        ConfigError: The folder holds something, or cannot be written.
    """
    with write_faults(f'--out: {root}', NO_ROOM_REMEDY):
        if root.exists() and any(root.iterdir()):
            raise ConfigError(f'{root}: exists already; remove it or choose another --out')
        yield from _write_folder(root, options)


def _write_folder(root: Path, options: FolderOptions) -> Iterator[int]:
    tables, drivelm = _Tables(), {}
    sensors = _add_fixed_rows(tables, options)
    count = 0
    for number, (kind, scene) in enumerate(options.make_scenes()):
        writer = _SceneWriter(
            root, tables, sensors, options, kind=kind, scene=scene, number=number
        )
        for written in writer.write():
            count += written
            yield count
        drivelm[writer.scene_token] = writer.drivelm
    folder = root / VERSION
    folder.mkdir(parents=True)
    for table, rows in tables.rows.items():
        text = json.dumps(rows, indent=0)
        (folder / f'{table}.json').write_text(text, encoding='utf-8')
    write_drivelm(root / 'drivelm.json', drivelm)


def _add_fixed_rows(tables: _Tables, options: FolderOptions) -> dict[str, str]:
    """Add what all scenes share; returns camera to token of its calibrated sensor."""
    for kind, name in CATEGORY_NAMES.items():
        tables.add('category', kind, name=name, description=f'A {kind}.')
    for name in dict.fromkeys(ATTRIBUTE_NAMES.values()):
        tables.add('attribute', name, name=name, description=name.replace('.', ' '))
    for number, level in VISIBILITIES.items():
        row = {'token': number, 'level': level, 'description': f'visibility {level}'}
        tables.rows.setdefault('visibility', []).append(row)
    calibrated = {}
    for camera in CAMERAS.values():
        sensor = tables.add('sensor', camera.name, channel=camera.name, modality='camera')
        calibrated[camera.name] = tables.add(
            'calibrated_sensor',
            camera.name,
            sensor_token=sensor,
            translation=list(camera.position_m),
            rotation=camera_quaternion(camera),
            camera_intrinsic=camera.intrinsics(options.height, options.width).tolist(),
        )
    return calibrated


def camera_quaternion(camera: Camera) -> list[float]:
    """Return w, x, y, z of the rotation from camera axes to ego axes."""
    half = camera.yaw / 2
    w, z = math.cos(half), math.sin(half)
    # The turn about z after the change of axes (right, down, forward) to (x, y, z).
    return _multiply([w, 0.0, 0.0, z], [0.5, -0.5, 0.5, -0.5])


def _multiply(a: list[float], b: list[float]) -> list[float]:
    (aw, ax, ay, az), (bw, bx, by, bz) = a, b
    return [
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    ]


class _SceneWriter:
    """Writes one scene."""

    def __init__(
        self,
        root: Path,
        tables: _Tables,
        sensors: dict[str, str],
        options: FolderOptions,
        *,
        kind: str,
        scene: Scene,
        number: int,
    ) -> None:
        self._root, self._tables, self._sensors, self._options = root, tables, sensors, options
        self._name = f'scene-{number + 1:04d}'
        self._kind, self._scene = kind, scene
        self._start_us = FIRST_STAMP_US + number * SCENE_GAP_US
        self.scene_token = token('scene', self._name)
        self.drivelm: dict[str, Any] = {'scene_description': '', 'key_frames': {}}

    def write(self) -> Iterator[int]:
        """Write pictures and rows; yields the number of pictures of each keyframe."""
        log = self._tables.add(
            'log',
            self._name,
            logfile=self._name,
            vehicle='p2d_sim',
            date_captured='2023-11-14',
            location=self._kind,
        )
        self._tables.add(
            'map',
            self._name,
            log_tokens=[log],
            category='semantic_prior',
            filename=self._write_map(),
        )
        num_samples = int(self._options.duration_s / KEYFRAME_PERIOD_S)
        samples = []
        for index in range(num_samples):
            samples.append(self._write_sample(index))
            yield len(CAMERAS)
        self._finish(log, samples)

    def _write_map(self) -> str:
        """Write where vehicles may drive, 0.1 m per pixel, x to the right, y up."""
        name = f'maps/{self._name}.png'
        size = (round(2 * WALK_HALF_M / MAP_METRES_PER_PX), round(RING_M / MAP_METRES_PER_PX))
        mask = np.zeros(size, np.uint8)
        edge = round((WALK_HALF_M - STRIP_HALF_M) / MAP_METRES_PER_PX)
        mask[edge:-edge] = 255
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), mask)
        return name

    def _finish(self, log: str, samples: list[str]) -> None:
        self._tables.link('sample')
        for camera in CAMERAS:
            self._link_images(camera)
        self._add_instances()
        self._tables.add(
            'scene',
            self._name,
            name=self._name,
            description=self.drivelm['scene_description'],
            log_token=log,
            nbr_samples=len(samples),
            first_sample_token=samples[0],
            last_sample_token=samples[-1],
        )

    def _write_sample(self, index: int) -> str:
        start_s = index * KEYFRAME_PERIOD_S
        tables = self._tables
        sample = tables.add(
            'sample',
            self._name,
            index,
            timestamp=self._stamp_us(start_s),
            scene_token=self.scene_token,
            prev=None,
            next=None,
        )
        views: dict[str, View] = {}
        paths: dict[str, str] = {}
        for exposure in exposures():
            time_s = start_s + exposure.offset_ms / 1000.0
            views[exposure.camera] = self._draw(exposure.camera, time_s, index)
            paths[exposure.camera] = self._write_image(exposure.camera, time_s, sample, views)
        snapshot = snapshot_at(self._scene, start_s)
        for actor in snapshot.actors:
            if actor.distance_m < RANGE_M:
                self._add_annotation(sample, index, snapshot, actor)
        self._add_questions(sample, index, snapshot, views, paths)
        return sample

    def _stamp_us(self, time_s: float) -> int:
        return self._start_us + round(time_s * US_PER_S)

    def _draw(self, camera: str, time_s: float, index: int) -> View:
        renderer = Renderer(snapshot_at(self._scene, time_s), metres_per_px=METRES_PER_PX)
        noise_seed = index * 8 + list(CAMERAS).index(camera)
        options = self._options
        return renderer.draw(CAMERAS[camera], options.height, options.width, noise_seed=noise_seed)

    def _write_image(self, camera: str, time_s: float, sample: str, views: dict[str, View]) -> str:
        stamp = self._stamp_us(time_s)
        name = f'samples/{camera}/{self._name}__{camera}__{stamp}.jpg'
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_jpeg(views[camera].pixels))
        tables = self._tables
        ego_x = snapshot_at(self._scene, time_s).ego_x_m
        pose = tables.add(
            'ego_pose',
            self._name,
            camera,
            stamp,
            timestamp=stamp,
            translation=[ego_x, 0.0, 0.0],
            rotation=[1.0, 0.0, 0.0, 0.0],
        )
        tables.add(
            'sample_data',
            self._name,
            camera,
            stamp,
            sample_token=sample,
            ego_pose_token=pose,
            calibrated_sensor_token=self._sensors[camera],
            timestamp=stamp,
            fileformat='jpg',
            is_key_frame=True,
            height=self._options.height,
            width=self._options.width,
            filename=name,
            prev=None,
            next=None,
        )
        return name

    def _link_images(self, camera: str) -> None:
        rows = self._tables.rows['sample_data']
        mine = [
            row
            for row in rows
            if row['prev'] is None and row['calibrated_sensor_token'] == self._sensors[camera]
        ]
        chain = _Tables({'sample_data': mine})
        chain.link('sample_data')

    def _add_annotation(
        self, sample: str, index: int, snapshot: Snapshot, actor: ActorState
    ) -> None:
        attribute = ATTRIBUTE_NAMES.get(actor.status)
        half_yaw = actor.yaw / 2
        self._tables.add(
            'sample_annotation',
            self._name,
            actor.index,
            index,
            sample_token=sample,
            instance_token=token('instance', self._name, actor.index),
            visibility_token='4',
            attribute_tokens=[token('attribute', attribute)] if attribute else [],
            translation=[actor.x_m + snapshot.ego_x_m, actor.y_m, HEIGHT_M[actor.kind] / 2],
            size=[WIDTH_M[actor.kind], LENGTH_M[actor.kind], HEIGHT_M[actor.kind]],
            rotation=[math.cos(half_yaw), 0.0, 0.0, math.sin(half_yaw)],
            prev=None,
            next=None,
            num_lidar_pts=0,
            num_radar_pts=0,
        )

    def _add_instances(self) -> None:
        annotations = self._tables.rows.get('sample_annotation', [])
        for index, actor in enumerate(self._scene.actors):
            instance = token('instance', self._name, index)
            mine = [row for row in annotations if row['instance_token'] == instance]
            if not mine:
                continue
            _Tables({'sample_annotation': mine}).link('sample_annotation')
            self._tables.add(
                'instance',
                self._name,
                index,
                category_token=token('category', actor.kind),
                nbr_annotations=len(mine),
                first_annotation_token=mine[0]['token'],
                last_annotation_token=mine[-1]['token'],
            )

    def _add_questions(
        self,
        sample: str,
        index: int,
        snapshot: Snapshot,
        views: dict[str, View],
        paths: dict[str, str],
    ) -> None:
        shrunk = [_shrink_ids(views[camera].ids) for camera in CAMERAS]
        seed = self._scene.seed * 1000 + index
        truth, questions = ask_snapshot(snapshot, shrunk, seed)
        if index == 0:
            self.drivelm['scene_description'] = describe_scene(truth)
        ordered = {camera: paths[camera] for camera in CAMERAS}
        self.drivelm['key_frames'][sample] = key_frame(truth, questions, ordered)


def _shrink_ids(ids: np.ndarray) -> np.ndarray:
    """Return an id map at the size for which ground truth is defined."""
    return np.asarray(cv2.resize(ids, (168, 168), interpolation=cv2.INTER_NEAREST), np.uint8)
