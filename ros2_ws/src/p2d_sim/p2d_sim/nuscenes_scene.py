"""One scene comes in; its images and map, table rows and DriveLM keyframes go out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from p2d_sim.cameras import CAMERAS
from p2d_sim.drawing import Renderer, View
from p2d_sim.drivelm_json import describe_scene, key_frame
from p2d_sim.ground_truth import find_truth, shrink_ids
from p2d_sim.nuscenes_tables import ATTRIBUTE_NAMES, link_rows, NuscenesTables, Row, token
from p2d_sim.questions import ask_with_seed
from p2d_sim.sweeps import Exposure, exposures, FIRST_STAMP_S, METRES_PER_PX, to_jpeg
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

KEYFRAME_PERIOD_S = 0.5
"""nuScenes annotates at 2 Hz."""

SCENE_GAP_US = 60_000_000
US_PER_S = 1_000_000
MAP_METRES_PER_PX = 0.1
ANNOTATED_M = 50.0
"""Actors farther away than this have no annotation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedScene:
    """A scene and its place in the data set.

    Attributes:
        number: Position in the data set, from 0.
        kind: Name of the scenario, or `random`.
        scene: The scene.
    """

    number: int
    kind: str
    scene: Scene

    @property
    def name(self) -> str:
        """Name in the tables, e.g. `scene-0001`."""
        return f'scene-{self.number + 1:04d}'

    def stamp_us(self, time_s: float) -> int:
        """Return the stamp of a time in the scene, microseconds since the epoch."""
        start_us = FIRST_STAMP_S * US_PER_S + self.number * SCENE_GAP_US
        return start_us + round(time_s * US_PER_S)


class SceneWriter:
    """Writes the images of one scene and adds its rows to the tables."""

    def __init__(
        self,
        root: Path,
        tables: NuscenesTables,
        sensors: dict[str, str],
        named: NamedScene,
        *,
        height: int,
        width: int,
    ) -> None:
        """Prepare the scene; nothing is written yet.

        Args:
            root: Folder of the data set.
            tables: Where the rows go.
            sensors: Camera name to the token of its calibrated sensor.
            named: The scene.
            height: Of the images, pixels.
            width: Of the images, pixels.
        """
        self._root, self._tables, self._sensors = root, tables, sensors
        self._named, self._scene, self._name = named, named.scene, named.name
        self._height, self._width = height, width
        self._samples: list[Row] = []
        self._images: dict[str, list[Row]] = {camera: [] for camera in CAMERAS}
        self._annotations: dict[int, list[Row]] = defaultdict(list)
        self.scene_token = token('scene', self._name)
        self.drivelm: dict[str, Any] = {'scene_description': '', 'key_frames': {}}

    def write(self, duration_s: float) -> Iterator[int]:
        """Write `duration_s` seconds; yields the number of images after each keyframe."""
        log = self._tables.add(
            'log',
            self._name,
            logfile=self._name,
            vehicle='p2d_sim',
            date_captured='2023-11-14',
            location=self._named.kind,
        )
        self._tables.add(
            'map',
            self._name,
            log_tokens=[log['token']],
            category='semantic_prior',
            filename=self._write_map(),
        )
        for index in range(int(duration_s / KEYFRAME_PERIOD_S)):
            self._write_keyframe(index)
            yield len(CAMERAS)
        self._finish(log)

    def _write_map(self) -> str:
        """Write where vehicles may drive, 0.1 m per pixel, x to the right, y up."""
        name = f'maps/{self._name}.png'
        size = (round(2 * WALK_HALF_M / MAP_METRES_PER_PX), round(RING_M / MAP_METRES_PER_PX))
        mask = np.zeros(size, np.uint8)
        edge = round((WALK_HALF_M - STRIP_HALF_M) / MAP_METRES_PER_PX)
        mask[edge:-edge] = 255
        cv2.imwrite(str(self._path_of(name)), mask)
        return name

    def _path_of(self, name: str) -> Path:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _finish(self, log: Row) -> None:
        """Link the rows of the scene and add the rows that need all of them."""
        for rows in (self._samples, *self._images.values(), *self._annotations.values()):
            link_rows(rows)
        for index, rows in sorted(self._annotations.items()):
            self._tables.add(
                'instance',
                self._name,
                index,
                category_token=token('category', self._scene.actors[index].kind),
                nbr_annotations=len(rows),
                first_annotation_token=rows[0]['token'],
                last_annotation_token=rows[-1]['token'],
            )
        self._tables.add(
            'scene',
            self._name,
            name=self._name,
            description=self.drivelm['scene_description'],
            log_token=log['token'],
            nbr_samples=len(self._samples),
            first_sample_token=self._samples[0]['token'],
            last_sample_token=self._samples[-1]['token'],
        )

    def _write_keyframe(self, index: int) -> None:
        start_s = index * KEYFRAME_PERIOD_S
        sample = self._tables.add(
            'sample',
            self._name,
            index,
            timestamp=self._named.stamp_us(start_s),
            scene_token=self.scene_token,
            prev='',
            next='',
        )
        self._samples.append(sample)
        views: dict[str, View] = {}
        for exposure in exposures():
            views[exposure.camera] = self._write_view(exposure, index, sample)
        snapshot = snapshot_at(self._scene, start_s)
        for actor in snapshot.actors:
            if actor.distance_m < ANNOTATED_M:
                self._add_annotation(sample, index, snapshot, actor)
        self._add_questions(sample, index, snapshot, views)

    def _write_view(self, exposure: Exposure, index: int, sample: Row) -> View:
        """Draw one camera at its exposure, write the image and add its rows."""
        camera = exposure.camera
        time_s = index * KEYFRAME_PERIOD_S + exposure.offset_ms / 1000.0
        snapshot = snapshot_at(self._scene, time_s)
        renderer = Renderer(snapshot, metres_per_px=METRES_PER_PX)
        noise_seed = index * 8 + list(CAMERAS).index(camera)
        view = renderer.draw(CAMERAS[camera], self._height, self._width, noise_seed=noise_seed)
        stamp_us = self._named.stamp_us(time_s)
        name = f'samples/{camera}/{self._name}__{camera}__{stamp_us}.jpg'
        self._path_of(name).write_bytes(to_jpeg(view.pixels))
        self._add_image(camera, stamp_us, sample=sample, name=name, ego_x_m=snapshot.ego_x_m)
        return view

    def _add_image(
        self, camera: str, stamp_us: int, *, sample: Row, name: str, ego_x_m: float
    ) -> None:
        place = (self._name, camera, stamp_us)
        pose = self._tables.add(
            'ego_pose',
            *place,
            timestamp=stamp_us,
            translation=[ego_x_m, 0.0, 0.0],
            rotation=[1.0, 0.0, 0.0, 0.0],
        )
        row = self._tables.add(
            'sample_data',
            *place,
            sample_token=sample['token'],
            ego_pose_token=pose['token'],
            calibrated_sensor_token=self._sensors[camera],
            timestamp=stamp_us,
            fileformat='jpg',
            is_key_frame=True,
            height=self._height,
            width=self._width,
            filename=name,
            prev='',
            next='',
        )
        self._images[camera].append(row)

    def _add_annotation(
        self, sample: Row, index: int, snapshot: Snapshot, actor: ActorState
    ) -> None:
        attribute = ATTRIBUTE_NAMES.get(actor.status)
        half_yaw = actor.yaw / 2
        row = self._tables.add(
            'sample_annotation',
            self._name,
            actor.index,
            index,
            sample_token=sample['token'],
            instance_token=token('instance', self._name, actor.index),
            visibility_token='4',
            attribute_tokens=[token('attribute', attribute)] if attribute else [],
            translation=[actor.x_m + snapshot.ego_x_m, actor.y_m, HEIGHT_M[actor.kind] / 2],
            size=[WIDTH_M[actor.kind], LENGTH_M[actor.kind], HEIGHT_M[actor.kind]],
            rotation=[math.cos(half_yaw), 0.0, 0.0, math.sin(half_yaw)],
            prev='',
            next='',
            num_lidar_pts=0,
            num_radar_pts=0,
        )
        self._annotations[actor.index].append(row)

    def _add_questions(
        self, sample: Row, index: int, snapshot: Snapshot, views: dict[str, View]
    ) -> None:
        ids = [shrink_ids(views[camera].ids) for camera in CAMERAS]
        truth = find_truth(snapshot, list(CAMERAS.values()), ids)
        questions = ask_with_seed(truth, self._scene.seed * 1000 + index)
        if index == 0:
            self.drivelm['scene_description'] = describe_scene(truth)
        paths = {camera: self._images[camera][-1]['filename'] for camera in CAMERAS}
        self.drivelm['key_frames'][sample['token']] = key_frame(truth, questions, paths)
