"""A snapshot and a camera come in; the image and its id map go out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import math

import cv2
import numpy as np
import numpy.typing as npt

from p2d_sim.cameras import Camera
from p2d_sim.ground import AHEAD_M, draw_ground, SIDE_M
from p2d_sim.meshes import CORNERS, join, Mesh
from p2d_sim.roadside import building_mesh, plant_mesh
from p2d_sim.shapes import actor_mesh, signal_mesh
from p2d_sim.traffic import wrap_around
from p2d_sim.weather import apply_weather, draw_sky
from p2d_sim.world import Snapshot

NEAR_M = 0.4
FAR_M = 55.0
SUBPIXEL_BITS = 4
SIGNAL_ID = 255
"""Id of the traffic light in id maps; actors have `index + 1`, everything else 0."""

SIGNAL_Y_M = -5.9
STRIDE_M = 0.5
"""Distance that a pedestrian walks between two poses."""

Picture = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class View:
    """One rendered camera.

    Attributes:
        pixels: RGB uint8 [height, width, 3].
        ids: uint8 [height, width]: actor index + 1, `SIGNAL_ID`, or 0.
    """

    pixels: Picture
    ids: Picture


class Renderer:
    """Draws the cameras of one snapshot. Ground and meshes are prepared once for all cameras."""

    def __init__(self, snapshot: Snapshot, *, metres_per_px: float = 0.15) -> None:
        """Prepare ground and faces.

        Args:
            snapshot: What to draw.
            metres_per_px: Resolution of the ground.
        """
        self._snapshot = snapshot
        self._metres_per_px = metres_per_px
        self._ground = draw_ground(snapshot, metres_per_px)
        meshes, numbers = _place_all(snapshot)
        self._mesh, owner = join(meshes)
        self._ids = np.array(numbers)[owner]
        self._rank = _rank_by_occlusion(self._mesh.points[:, :, :2], owner)
        self._group_starts = np.flatnonzero(np.diff(self._mesh.groups, prepend=-1))
        self._group_sizes = np.diff(self._group_starts, append=len(owner))

    def draw(self, camera: Camera, height: int, width: int, *, noise_seed: int = 0) -> View:
        """Draw one camera.

        Args:
            camera: The camera.
            height: Of the image, pixels.
            width: Of the image, pixels; the aspect ratio may differ from the camera's.
            noise_seed: Seed of the sensor noise and of rain.
        """
        pixels = np.empty((height, width, 3), np.uint8)
        ids = np.zeros((height, width), np.uint8)
        matrix = camera.intrinsics(height, width)
        horizon = math.ceil(matrix[1, 2])
        draw_sky(pixels[:horizon], self._snapshot, camera)
        self._draw_ground(pixels, camera, matrix, horizon)
        self._draw_faces(pixels, ids, camera, matrix)
        rng = np.random.default_rng((self._snapshot.scene.seed, noise_seed))
        return View(apply_weather(pixels, self._snapshot.scene.conditions, rng), ids)

    def _draw_ground(
        self, pixels: Picture, camera: Camera, matrix: FloatArray, horizon: int
    ) -> None:
        res = self._metres_per_px
        from_raster = np.array([[res, 0, -AHEAD_M], [0, -res, SIDE_M], [0, 0, 0], [0, 0, 1]])
        rotation = camera.rotation()
        extrinsic = np.hstack([rotation, -rotation @ np.array(camera.position_m)[:, None]])
        shift = np.array([[1.0, 0, 0], [0, 1, -horizon], [0, 0, 1]])
        homography = shift @ matrix @ extrinsic @ from_raster
        height, width = pixels.shape[:2]
        pixels[horizon:] = cv2.warpPerspective(
            self._ground,
            homography,
            (width, height - horizon),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def _draw_faces(
        self, pixels: Picture, ids: Picture, camera: Camera, matrix: FloatArray
    ) -> None:
        points = camera.to_camera(self._mesh.points)
        order = self._order(points, camera)
        depth = points[order, :, 2]
        clipped = np.any(depth < NEAR_M, axis=1)
        flat = _project(points[order], matrix)
        screen = np.rint(flat * (1 << SUBPIXEL_BITS)).astype(np.int32)
        colours = self._mesh.colours[order].tolist()
        numbers, solid = self._ids[order].tolist(), self._mesh.solid[order].tolist()
        fill, shift = cv2.fillConvexPoly, SUBPIXEL_BITS
        for i, face in enumerate(order):
            polygon = screen[i]
            if clipped[i]:
                polygon = _clip_near(points[face], matrix)
            fill(pixels, polygon, colours[i], 8, shift)
            if solid[i]:
                fill(ids, polygon, numbers[i], 8, shift)

    def _order(self, points: FloatArray, camera: Camera) -> npt.NDArray[np.int64]:
        """Return the visible faces, far groups first."""
        depth = points[:, :, 2]
        reach = np.tan(camera.fov / 2) * 1.02
        seen = (depth > NEAR_M).any(axis=1) & (depth < FAR_M).any(axis=1)
        seen &= (points[:, :, 0] < reach * depth + NEAR_M).any(axis=1)
        seen &= (points[:, :, 0] > -reach * depth - NEAR_M).any(axis=1)
        # A face is visible if its normal points towards the camera.
        edge_a, edge_b = points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]
        facing = (np.cross(edge_a, edge_b) * points[:, 0]).sum(axis=1) < 0.0
        seen &= facing | self._mesh.two_sided
        centres = np.add.reduceat(points.mean(axis=1), self._group_starts)
        distance = np.linalg.norm(centres / self._group_sizes[:, None], axis=1)
        key = self._rank * 1000.0 + distance[self._mesh.groups] - self._mesh.lift_m
        visible = np.flatnonzero(seen)
        return visible[np.argsort(-key[visible], kind='stable')]


def _rank_by_occlusion(xy: FloatArray, owner: npt.NDArray[np.int64]) -> FloatArray:
    """Rank objects so that one behind another has the higher rank.

    Footprints do not overlap, so there is a gap in x or in y between two of them; the object on
    the same side of the gap as the ego vehicle is in front.

    Args:
        xy: [faces, corners, 2], ego frame.
        owner: Number of the object of each face, ascending.

    Returns:
        Rank of each face, 0 in front.
    """
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    low = np.minimum.reduceat(xy.min(axis=1), starts)
    high = np.maximum.reduceat(xy.max(axis=1), starts)
    eye = np.array([1.0, 0.0])
    beyond = (low[:, None] >= high[None] - 0.05) & (eye <= high[None])
    beyond |= (high[:, None] <= low[None] + 0.05) & (eye >= low[None])
    behind = beyond.any(axis=2)
    behind &= ~(behind & behind.T)
    rank = np.zeros(len(starts))
    for _ in range(12):
        rank = np.where(behind, rank[None] + 1.0, 0.0).max(axis=1)
    return rank[owner]


def _place_all(snapshot: Snapshot) -> tuple[list[Mesh], list[int]]:
    meshes, numbers = [], []
    ego_x = snapshot.ego_x_m
    for building in snapshot.scene.buildings:
        x = wrap_around(building.x_m - ego_x)
        if abs(x) > FAR_M:
            continue
        meshes.append(building_mesh(building).placed(x, building.y_m, 0.0))
    for plant in snapshot.scene.plants:
        x = wrap_around(plant.x_m - ego_x)
        if abs(x) > FAR_M:
            continue
        meshes.append(plant_mesh(plant).placed(x, plant.y_m, 0.0))
    numbers += [0] * len(meshes)
    if snapshot.signal_x_m is not None:
        mesh = signal_mesh(snapshot.signal_state)
        meshes.append(mesh.placed(snapshot.signal_x_m + 3.7, SIGNAL_Y_M, 0.0))
        numbers.append(SIGNAL_ID)
    for actor in snapshot.actors:
        pose = int(actor.speed_mps * snapshot.time_s / STRIDE_M) + actor.index
        pose = pose % 3 if actor.status == 'walking' else 0
        mesh = actor_mesh(actor.kind, actor.colour, actor.status, pose)
        meshes.append(mesh.placed(actor.x_m, actor.y_m, actor.yaw))
        numbers.append(actor.index + 1)
    return meshes, numbers


def _project(points: FloatArray, matrix: FloatArray) -> FloatArray:
    """Map camera points [..., 3] to pixels [..., 2], clipped to the range that OpenCV can draw."""
    depth = np.maximum(points[..., 2], 1e-6)
    x = points[..., 0] / depth * matrix[0, 0] + matrix[0, 2]
    y = points[..., 1] / depth * matrix[1, 1] + matrix[1, 2]
    # Pixel centres are whole numbers in OpenCV and halves with the camera matrix.
    return np.clip(np.stack([x, y], axis=-1) - 0.5, -30_000.0, 30_000.0)


def _clip_near(points: FloatArray, matrix: FloatArray) -> npt.NDArray[np.int32]:
    """Return the part of a polygon beyond the near plane, as fixed-point pixels."""
    kept: list[FloatArray] = []
    for i in range(CORNERS):
        a, b = points[i - 1], points[i]
        if (a[2] < NEAR_M) != (b[2] < NEAR_M):
            kept.append(a + (b - a) * (NEAR_M - a[2]) / (b[2] - a[2]))
        if b[2] >= NEAR_M:
            kept.append(b)
    flat = _project(np.array(kept), matrix)
    return np.rint(flat * (1 << SUBPIXEL_BITS)).astype(np.int32)


def render_sweep(
    snapshot: Snapshot,
    cameras: Sequence[Camera],
    height: int,
    width: int,
    *,
    metres_per_px: float = 0.15,
    noise_seed: int = 0,
) -> list[View]:
    """Draw all `cameras` at the same moment, see `Renderer`."""
    renderer = Renderer(snapshot, metres_per_px=metres_per_px)
    return [
        renderer.draw(camera, height, width, noise_seed=noise_seed * 8 + number)
        for number, camera in enumerate(cameras)
    ]
