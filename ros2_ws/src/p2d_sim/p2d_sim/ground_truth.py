"""Id maps and a snapshot come in; what can be seen, and what the ego vehicle should do, go out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
import math

import cv2
import numpy as np
import numpy.typing as npt

from p2d_sim.cameras import Camera, FULL_HEIGHT_PX, FULL_WIDTH_PX
from p2d_sim.drawing import SIGNAL_ID
from p2d_sim.world import (
    ActorState,
    HEIGHT_M,
    LENGTH_M,
    OBSTACLES,
    Snapshot,
    VEHICLES,
    WIDTH_M,
)

TRUTH_PX = 168
"""Side of the id maps from which ground truth is derived; the shares below belong to it."""

HINT_SHARE = 0.0003
"""Less of the picture than this is not seen at all ..."""

CLEAR_SHARE = 0.0020
"""... and from this on an object may be asked about."""

CLEAR_PART = 0.27
"""Least visible part of an object's bounding box."""

PATH_HALF_M = 1.5
CLOSE_M = (9.5, 14.0)
"""Gap to a vehicle ahead: below the first close, above the second far."""

LANE_TAKEN_M, LANE_FREE_M = 13.0, 18.0
"""A neighbouring lane is taken by what is nearer than the first, free beyond the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """An actor in one view.

    Attributes:
        actor: Its state.
        box: Left, top, right, bottom of what is visible, as parts of width and height.
        centre: Centroid x, y of what is visible, as parts of width and height.
        clear: False where so much is hidden or cut that nothing should be asked about it.
    """

    actor: ActorState
    box: tuple[float, float, float, float]
    centre: tuple[float, float]
    clear: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewTruth:
    """What one camera sees; sightings by actor index."""

    camera: str
    sightings: tuple[Sighting, ...]
    signal_clear: bool
    signal_hint: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the ego vehicle should do.

    Attributes:
        action: `keep speed`, `slow down` or `brake`.
        reason: In words.
        cause: The actor it is about; None where it is the light or nothing.
    """

    action: str
    reason: str
    cause: ActorState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Everything that questions about one sweep may use.

    Attributes:
        snapshot: The moment.
        views: One per camera, in the cameras' order.
        plan: None where it would be a matter of opinion.
        lane_taken: For `left` and `right`: True, False, or None where it is close.
    """

    snapshot: Snapshot
    views: tuple[ViewTruth, ...]
    plan: Plan | None
    lane_taken: dict[str, bool | None]


def shrink_ids(ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return an id map of any size at `TRUTH_PX` x `TRUTH_PX`, for `find_truth`."""
    size = (TRUTH_PX, TRUTH_PX)
    return np.asarray(cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST), np.uint8)


def find_truth(
    snapshot: Snapshot, cameras: Sequence[Camera], ids: Sequence[npt.NDArray[np.uint8]]
) -> Truth:
    """Derive the ground truth of a sweep.

    Args:
        snapshot: The moment.
        cameras: The cameras.
        ids: Their id maps, see `drawing.View`.
    """
    views = tuple(
        _see(snapshot, camera, id_map) for camera, id_map in zip(cameras, ids, strict=True)
    )
    lanes = {'left': _lane_taken(snapshot, 1.0), 'right': _lane_taken(snapshot, -1.0)}
    return Truth(snapshot=snapshot, views=views, plan=judge(snapshot), lane_taken=lanes)


def _see(snapshot: Snapshot, camera: Camera, ids: npt.NDArray[np.uint8]) -> ViewTruth:
    rows, columns = np.nonzero(ids)
    numbers = ids[rows, columns]
    counts = np.bincount(numbers, minlength=256)
    sightings = []
    for number in np.flatnonzero(counts[:SIGNAL_ID] >= HINT_SHARE * ids.size):
        actor = snapshot.actors[int(number) - 1]
        mine = numbers == number
        sightings.append(_sight(actor, camera, rows[mine], columns[mine], ids.shape))
    share = counts[SIGNAL_ID] / ids.size
    return ViewTruth(
        camera=camera.name,
        sightings=tuple(sightings),
        signal_clear=bool(share >= 2 * CLEAR_SHARE),
        signal_hint=bool(share > 0.0),
    )


def _sight(
    actor: ActorState,
    camera: Camera,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    shape: tuple[int, ...],
) -> Sighting:
    height, width = shape
    share = len(rows) / (height * width)
    whole = _outline_share(actor, camera)
    x, y = (float(columns.mean()) + 0.5) / width, (float(rows.mean()) + 0.5) / height
    box = (
        float(columns.min()) / width,
        float(rows.min()) / height,
        float(columns.max() + 1) / width,
        float(rows.max() + 1) / height,
    )
    clear = share >= CLEAR_SHARE and share >= CLEAR_PART * whole and 0.03 < x < 0.97
    return Sighting(actor=actor, box=box, centre=(x, y), clear=clear)


def outline(actor: ActorState) -> npt.NDArray[np.float64]:
    """Return the eight corners [8, 3] of an actor's box, ego frame, metres."""
    half_l, half_w = LENGTH_M[actor.kind] / 2, WIDTH_M[actor.kind] / 2
    c, s = math.cos(actor.yaw), math.sin(actor.yaw)
    corners = [
        (actor.x_m + c * u - s * v, actor.y_m + s * u + c * v, z)
        for u, v, z in product((-half_l, half_l), (-half_w, half_w), (0.0, HEIGHT_M[actor.kind]))
    ]
    return np.array(corners)


def _outline_share(actor: ActorState, camera: Camera) -> float:
    """Return the area of an actor's box on the unbounded picture, as a part of the picture."""
    points = camera.to_camera(outline(actor))
    depth = np.maximum(points[:, 2], 0.5)
    spans = np.ptp(points[:, :2] / depth[:, None], axis=0) * camera.focal_px
    return float(spans[0] * spans[1] / (FULL_HEIGHT_PX * FULL_WIDTH_PX))


def in_path(actor: ActorState) -> bool | None:
    """Tell whether the ego vehicle would drive into `actor`; None where it is close."""
    half = WIDTH_M[actor.kind] / 2 if actor.kind in VEHICLES else 0.0
    if actor.kind == 'pedestrian' and actor.status == 'walking':
        return _three_way(abs(actor.y_m), 2.0, 4.5)
    return _three_way(max(0.0, abs(actor.y_m) - half), 0.9, 1.4)


def _three_way(value: float, inside: float, outside: float) -> bool | None:
    if value <= inside:
        return True
    return False if value >= outside else None


def judge(snapshot: Snapshot) -> Plan | None:
    """Return what to do now; None where something is on the verge or two things compete."""
    plans = []
    for actor in snapshot.actors:
        gap = actor.x_m - LENGTH_M[actor.kind] / 2 - 1.7
        if not 0.0 < actor.x_m < 32.0:
            continue
        inside = in_path(actor)
        if inside is None:
            return None
        if inside:
            plan = _heed(actor, gap)
            if plan is None:
                return None
            plans.append(plan)
    if snapshot.signal_x_m is not None and 4.0 < snapshot.signal_x_m < 25.0:
        plans += _heed_light(snapshot.signal_state)
    urgent = [plan for plan in plans if plan.action != 'keep speed']
    if len(urgent) > 1:
        return None
    return (
        urgent or plans or [Plan(action='keep speed', reason='the road is clear', cause=None)]
    )[0]


def _heed(actor: ActorState, gap_m: float) -> Plan | None:
    if actor.kind == 'pedestrian' or actor.kind in OBSTACLES:
        action, reason = 'brake', f'a {actor.kind} is in the way'
    elif actor.status == 'braking':
        action, reason = 'brake', f'the {actor.kind} ahead is braking'
    elif actor.kind == 'cyclist':
        action, reason = 'slow down', 'a cyclist is ahead'
    else:
        return _keep_distance(actor, gap_m)
    return Plan(action=action, reason=reason, cause=actor)


def _keep_distance(actor: ActorState, gap_m: float) -> Plan | None:
    close = _three_way(gap_m, *CLOSE_M)
    if close is None:
        return None
    if close:
        return Plan(action='slow down', reason=f'the {actor.kind} ahead is close', cause=actor)
    return Plan(action='keep speed', reason='the road is clear', cause=None)


def _heed_light(state: str) -> list[Plan]:
    actions = {'red': 'brake', 'yellow': 'slow down'}
    if state not in actions:
        return []
    return [Plan(action=actions[state], reason=f'the light is {state}', cause=None)]


def _lane_taken(snapshot: Snapshot, side: float) -> bool | None:
    """Tell whether the lane on `side` (1 left, -1 right) is taken beside the ego vehicle."""
    nearest = math.inf
    for actor in snapshot.actors:
        if 1.9 < side * actor.y_m < 5.1:
            nearest = min(nearest, abs(actor.x_m) - LENGTH_M[actor.kind] / 2)
    return _three_way(nearest, LANE_TAKEN_M, LANE_FREE_M)
