"""A snapshot and its id maps come in; visible actors and the plan of the ego vehicle go out."""

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
"""An object with a smaller share of the image counts as not visible."""

CLEAR_SHARE = 0.0020
CLEAR_PART = 0.27
"""Least share of the image, and visible part of the bounding box, of a clear object."""

CLOSE_M = (9.5, 14.0)
"""A vehicle ahead is close below the first gap and far above the second."""

AHEAD_M = 40.0
"""What is in the ego lane beyond this gap does not count; without anything nearer it is clear."""

LANE_TAKEN_M, LANE_FREE_M = 13.0, 18.0
"""A lane is taken if an actor is nearer than the first, free if all are beyond the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """An actor in one view.

    Attributes:
        actor: State of the actor.
        box: Left, top, right, bottom of the visible part, as parts of width and height.
        centre: Centroid x, y of the visible part, as parts of width and height.
        clear: True if enough is visible to ask about the actor.
    """

    actor: ActorState
    box: tuple[float, float, float, float]
    centre: tuple[float, float]
    clear: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewTruth:
    """What one camera shows.

    Attributes:
        camera: Name of the camera.
        sightings: Visible actors, by index.
        signal_clear: True if enough of the traffic light is visible to ask about it.
        signal_hint: True if any pixel of the traffic light is visible.
    """

    camera: str
    sightings: tuple[Sighting, ...]
    signal_clear: bool
    signal_hint: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the ego vehicle should do.

    Attributes:
        action: `keep speed`, `slow down` or `brake`.
        reason: The reason in words.
        cause: The actor that is the reason; None for the traffic light and a clear road.
        distance: `close` or `far` if the cause is a vehicle; None if that is ambiguous.
    """

    action: str
    reason: str
    cause: ActorState | None
    distance: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The ground truth that questions about one sweep use.

    Attributes:
        snapshot: The moment.
        views: One per camera, in the cameras' order.
        plan: What the ego vehicle should do; None if that is ambiguous.
        lane_taken: `left` and `right` to whether that lane is taken; None if that is ambiguous.
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
        ids: Their id maps, uint8 [height, width] each, see `drawing.View` and `shrink_ids`.
    """
    views = tuple(
        _view_truth(snapshot, camera, id_map) for camera, id_map in zip(cameras, ids, strict=True)
    )
    lanes = {'left': _lane_taken(snapshot, 1.0), 'right': _lane_taken(snapshot, -1.0)}
    return Truth(snapshot=snapshot, views=views, plan=find_plan(snapshot), lane_taken=lanes)


def _view_truth(snapshot: Snapshot, camera: Camera, ids: npt.NDArray[np.uint8]) -> ViewTruth:
    rows, columns = np.nonzero(ids)
    numbers = ids[rows, columns]
    counts = np.bincount(numbers, minlength=256)
    sightings = []
    for number in np.flatnonzero(counts[:SIGNAL_ID] >= HINT_SHARE * ids.size):
        actor = snapshot.actors[int(number) - 1]
        mine = numbers == number
        sightings.append(_make_sighting(actor, camera, rows[mine], columns[mine], ids.shape))
    share = counts[SIGNAL_ID] / ids.size
    return ViewTruth(
        camera=camera.name,
        sightings=tuple(sightings),
        signal_clear=bool(share >= 2 * CLEAR_SHARE),
        signal_hint=bool(share > 0.0),
    )


def _make_sighting(
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
    """Return the area of the projected box of an actor, also outside the image, per image area."""
    points = camera.to_camera(outline(actor))
    depth = np.maximum(points[:, 2], 0.5)
    spans = np.ptp(points[:, :2] / depth[:, None], axis=0) * camera.focal_px
    return float(spans[0] * spans[1] / (FULL_HEIGHT_PX * FULL_WIDTH_PX))


def in_path(actor: ActorState) -> bool | None:
    """Return whether the ego vehicle would hit `actor`; None if that is ambiguous."""
    half = WIDTH_M[actor.kind] / 2 if actor.kind in VEHICLES else 0.0
    if actor.kind == 'pedestrian' and actor.status == 'walking':
        return _decide(abs(actor.y_m), 2.0, 4.5)
    return _decide(max(0.0, abs(actor.y_m) - half), 0.9, 1.4)


def _decide(value: float, inside: float, outside: float) -> bool | None:
    if value <= inside:
        return True
    return False if value >= outside else None


def find_plan(snapshot: Snapshot) -> Plan | None:
    """Return what to do now; None if a case is ambiguous or several actors need a reaction."""
    plans = []
    for actor in sorted(snapshot.actors, key=lambda actor: actor.x_m):
        gap = actor.x_m - LENGTH_M[actor.kind] / 2 - 1.7
        if actor.x_m <= 0.0 or gap > AHEAD_M:
            continue
        inside = in_path(actor)
        if inside is None:
            return None
        if inside:
            plan = _plan_for_actor(actor, gap)
            if plan is None:
                return None
            plans.append(plan)
    if snapshot.signal_x_m is not None and 4.0 < snapshot.signal_x_m < 25.0:
        plans += _plan_for_light(snapshot.signal_state)
    urgent = [plan for plan in plans if plan.action != 'keep speed']
    if len(urgent) > 1:
        return None
    return (
        urgent or plans or [Plan(action='keep speed', reason='the road is clear', cause=None)]
    )[0]


def _plan_for_actor(actor: ActorState, gap_m: float) -> Plan | None:
    if actor.kind == 'pedestrian' or actor.kind in OBSTACLES:
        action, reason = 'brake', f'a {actor.kind} is in the way'
    elif actor.status == 'braking':
        action, reason = 'brake', f'the {actor.kind} ahead is braking'
    elif actor.kind == 'cyclist':
        action, reason = 'slow down', 'a cyclist is ahead'
    else:
        return _keep_distance(actor, gap_m)
    distance = _distance_of(gap_m) if actor.kind in VEHICLES else None
    return Plan(action=action, reason=reason, cause=actor, distance=distance)


def _keep_distance(actor: ActorState, gap_m: float) -> Plan | None:
    distance = _distance_of(gap_m)
    if distance is None:
        return None
    action = 'slow down' if distance == 'close' else 'keep speed'
    reason = f'the {actor.kind} ahead is {distance}'
    return Plan(action=action, reason=reason, cause=actor, distance=distance)


def _distance_of(gap_m: float) -> str | None:
    return {True: 'close', False: 'far', None: None}[_decide(gap_m, *CLOSE_M)]


def _plan_for_light(state: str) -> list[Plan]:
    actions = {'red': 'brake', 'yellow': 'slow down'}
    if state not in actions:
        return []
    return [Plan(action=actions[state], reason=f'the light is {state}', cause=None)]


def _lane_taken(snapshot: Snapshot, side: float) -> bool | None:
    """Return whether the lane on `side` (1 left, -1 right) is taken; None if ambiguous."""
    nearest = math.inf
    for actor in snapshot.actors:
        if 1.9 < side * actor.y_m < 5.1:
            nearest = min(nearest, abs(actor.x_m) - LENGTH_M[actor.kind] / 2)
    return _decide(nearest, LANE_TAKEN_M, LANE_FREE_M)
