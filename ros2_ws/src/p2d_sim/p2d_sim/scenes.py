"""A seed comes in; a random scene goes out, with or without a hazard for the ego vehicle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
import math

import numpy as np

from p2d_sim.cameras import Camera, CAMERAS
from p2d_sim.shapes import CLOTHES
from p2d_sim.surroundings import make_buildings, make_plants, make_surfaces
from p2d_sim.world import (
    Actor,
    COLOURS,
    CONDITIONS,
    CROSSING_M,
    KINDS,
    LANE_M,
    LENGTH_M,
    LIGHTS,
    Motion,
    Scene,
    Signal,
    VEHICLES,
    WALK_HALF_M,
    WIDTH_M,
)

HAZARDS = (
    'clear', 'far lead', 'close lead', 'braking lead', 'pedestrian', 'cyclist', 'obstacle',
    'red', 'yellow',
)  # fmt: skip
HAZARD_WEIGHTS = (2.0, 2.0, 1.4, 1.4, 1.2, 1.4, 1.0, 1.5, 1.4)
"""Hazards and how often they occur, so that each action is right in about a third of the
scenes."""

OBJECTS_PER_VIEW = (0.12, 0.4, 0.32, 0.16)
"""Probability that 0, 1, 2 or 3 objects are placed for a view."""

EGO_SPEED_MPS = 8.0
PATH_HALF_M = 2.4
PATH_AHEAD_M = (-6.0, 34.0)
"""Half width and range along the road of the area that background actors keep out of."""


def make_scene(seed: int, *, hazard: str | None = None) -> Scene:
    """Return the scene of `seed`; the same seed gives exactly the same scene.

    Args:
        seed: Any non-negative number.
        hazard: One of `HAZARDS`; None: chosen by the seed.
    """
    rng = np.random.default_rng((20_25, seed))
    drawn = str(rng.choice(HAZARDS, p=np.array(HAZARD_WEIGHTS) / sum(HAZARD_WEIGHTS)))
    hazard = drawn if hazard is None else hazard
    signal = _make_signal(rng, hazard)
    actors = _hazard_actors(rng, hazard)
    oncoming = bool(rng.random() < 0.5)
    for camera in CAMERAS.values():
        for _ in range(int(rng.choice(4, p=OBJECTS_PER_VIEW))):
            placed = _place_in_view(rng, camera, actors, signal, oncoming)
            if placed is not None:
                actors.append(placed)
    return Scene(
        seed=seed,
        conditions=str(rng.choice(CONDITIONS)),
        oncoming_left=oncoming,
        surfaces=make_surfaces(rng),
        ego=Motion(speed_mps=EGO_SPEED_MPS),
        actors=tuple(actors),
        buildings=tuple(make_buildings(rng, signal)),
        plants=tuple(make_plants(rng, signal)),
        signal=signal,
    )


def _make_signal(rng: np.random.Generator, hazard: str) -> Signal | None:
    x = float(rng.uniform(9.0, 18.0))
    if hazard in LIGHTS:
        return Signal(x_m=x, states=((-math.inf, hazard),))
    if rng.random() < 0.45:
        return Signal(x_m=x, states=((-math.inf, 'green'),))
    return None


def paint_of(rng: np.random.Generator, kind: str) -> str:
    """Choose the colour of a vehicle or the clothes of a person; empty for other kinds."""
    if kind in VEHICLES:
        return str(rng.choice(list(COLOURS)))
    return str(rng.integers(len(CLOTHES))) if kind in ('pedestrian', 'cyclist') else ''


def _hazard_actors(rng: np.random.Generator, hazard: str) -> list[Actor]:
    """Return the hazard in the ego lane, if it is an actor."""
    lateral = float(rng.uniform(-0.4, 0.4))
    if hazard in ('far lead', 'close lead', 'braking lead'):
        kind = str(rng.choice(VEHICLES))
        gap = {'far lead': (14.5, 36.0), 'close lead': (2.0, 9.0), 'braking lead': (2.0, 30.0)}
        x = float(rng.uniform(*gap[hazard])) + 1.7 + LENGTH_M[kind] / 2
        brake_s = -0.01 if hazard == 'braking lead' else math.inf
        motion = Motion(speed_mps=EGO_SPEED_MPS, brake_s=brake_s)
        return [_actor(rng, kind, x, lateral, 0.0, motion=motion)]
    if hazard == 'pedestrian':
        heading = float(rng.choice([-1.0, 1.0])) * math.pi / 2
        x, y = float(rng.uniform(6.0, 15.0)), float(rng.uniform(-1.5, 1.5))
        return [_actor(rng, 'pedestrian', x, y, heading, motion=Motion(speed_mps=1.4))]
    if hazard == 'cyclist':
        x = float(rng.uniform(6.0, 17.0))
        return [_actor(rng, 'cyclist', x, lateral, 0.0, motion=Motion(speed_mps=5.0))]
    if hazard == 'obstacle':
        kind = str(rng.choice(['cone', 'barrier']))
        return [_actor(rng, kind, float(rng.uniform(6.0, 14.0)), lateral, 0.0, motion=Motion())]
    return []


def _actor(
    rng: np.random.Generator, kind: str, x: float, y: float, yaw: float, *, motion: Motion
) -> Actor:
    return Actor(kind=kind, colour=paint_of(rng, kind), x_m=x, y_m=y, yaw=yaw, motion=motion)


def _place_in_view(
    rng: np.random.Generator,
    camera: Camera,
    others: Sequence[Actor],
    signal: Signal | None,
    oncoming: bool,
) -> Actor | None:
    """Place one object in free space in the view of `camera`; None if no try succeeds."""
    kind = str(rng.choice(KINDS))
    for _ in range(12):
        low, high = (3.5, 16.0) if kind in ('cone', 'barrier', 'pedestrian') else (4.5, 24.0)
        distance = low * (high / low) ** rng.random()
        angle = camera.yaw + rng.uniform(-0.42, 0.42) * camera.fov
        x = camera.position_m[0] + distance * math.cos(angle)
        y = camera.position_m[1] + distance * math.sin(angle)
        actor = _place_by_kind(rng, kind, x, y, oncoming)
        if actor is not None and _is_free(actor, others, signal):
            return actor
    return None


def _place_by_kind(
    rng: np.random.Generator, kind: str, x: float, y: float, oncoming: bool
) -> Actor | None:
    """Return an actor near x, y at a place that suits its kind; None if there is none."""
    side, away = math.copysign(1.0, y), abs(y)
    if kind in VEHICLES or kind == 'cyclist':
        return _place_on_road(rng, kind, x, y, oncoming)
    if kind == 'pedestrian' and away > 7.0:
        y = side * float(np.clip(away, 8.8, 11.3))
        yaw = float(rng.choice([0.0, math.pi])) + float(rng.uniform(-0.3, 0.3))
        speed = 1.4 if rng.random() < 0.5 else 0.0
        return _actor(rng, kind, x, y, yaw, motion=Motion(speed_mps=speed))
    if kind != 'pedestrian' and away > 2.9:
        y = side * float(np.clip(away, 3.0, 11.0))
        yaw = math.atan2(y, x) + float(rng.uniform(-0.6, 0.6))
        return _actor(rng, kind, x, y, yaw, motion=Motion())
    return None


def _place_on_road(
    rng: np.random.Generator, kind: str, x: float, y: float, oncoming: bool
) -> Actor | None:
    if abs(y) > WALK_HALF_M:
        return None
    lane = float(min((-LANE_M, 0.0, LANE_M), key=lambda middle: abs(middle - y)))
    strip = math.copysign(6.65, y)
    if kind != 'cyclist' and abs(y - strip) < abs(y - lane):
        yaw = float(rng.choice([0.0, math.pi]))
        actor = _actor(rng, kind, x, strip, yaw, motion=Motion())
        return replace(actor, parked=True)
    lateral = float(rng.uniform(-0.35, 0.35))
    against = oncoming and lane > 0.0
    brake_s = -0.01 if kind != 'cyclist' and rng.random() < 0.4 else math.inf
    motion = Motion(speed_mps=5.0 if kind == 'cyclist' else 8.0, brake_s=brake_s)
    return _actor(rng, kind, x, lane + lateral, math.pi if against else 0.0, motion=motion)


def _is_free(actor: Actor, others: Sequence[Actor], signal: Signal | None) -> bool:
    """Return True if the actor touches nothing and blocks neither ego lane nor junction."""
    half_x, half_y = _half_extent(actor)
    in_path = abs(actor.y_m) - half_y < PATH_HALF_M - 1.0
    if in_path and PATH_AHEAD_M[0] - half_x < actor.x_m < PATH_AHEAD_M[1] + half_x:
        return False
    # Right beside a camera a vehicle would fill the whole view.
    if abs(actor.x_m - 1.3) < half_x + 2.5 and abs(actor.y_m) < half_y + 3.0:
        return False
    beside_road = abs(actor.y_m) > 5.5
    if signal is not None and beside_road:
        start = signal.x_m + 1.0
        if start - half_x < actor.x_m < start + CROSSING_M + 4.0 + half_x:
            return False
    return not any(_touch(actor, other) for other in others)


def _half_extent(actor: Actor) -> tuple[float, float]:
    half_length, half_width = LENGTH_M[actor.kind] / 2, WIDTH_M[actor.kind] / 2
    c, s = abs(math.cos(actor.yaw)), abs(math.sin(actor.yaw))
    return c * half_length + s * half_width, s * half_length + c * half_width


def _touch(a: Actor, b: Actor) -> bool:
    (ax, ay), (bx, by) = _half_extent(a), _half_extent(b)
    return abs(a.x_m - b.x_m) < ax + bx + 0.7 and abs(a.y_m - b.y_m) < ay + by + 0.15
