"""Named scenarios for live topics, bags and folders.

Nothing happens until `EVENT_S`; then the event in the name of the scenario begins, and the ego
vehicle reacts a moment later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
import math

import numpy as np

from p2d_sim.scenes import EGO_SPEED_MPS, make_scene, paint_of
from p2d_sim.surroundings import in_junction
from p2d_sim.world import Actor, LANE_M, LENGTH_M, Motion, Scene, Signal, VEHICLES

EVENT_S = 6.0
DURATION_S = 14.0
"""Length of a scenario; a drive then starts it again with the next seed."""

REACTION_S = 0.8
LEAD_GAP_M = 16.0
EGO_NOSE_M = 1.7
"""From the ego origin to the front camera; gaps ahead are measured from there."""

STROLL_MPS = 1.4


def make_scenario(name: str, seed: int) -> Scene:
    """Return the scene of scenario `name`.

    Args:
        name: One of `SCENARIOS`.
        seed: Seed of surroundings, colours and weather.
    """
    scene = _open_road(make_scene(seed, hazard='clear'))
    return SCENARIOS[name](scene, np.random.default_rng((31, seed)))


def _open_road(scene: Scene) -> Scene:
    """Remove everything that would collide with the moving ego vehicle."""
    actors = []
    for actor in scene.actors:
        if not actor.parked and actor.kind in VEHICLES:
            actor = replace(actor, motion=replace(actor.motion, brake_s=math.inf))  # noqa: PLW2901
        if abs(actor.y_m) > LANE_M / 2:
            actors.append(actor)
    return replace(scene, actors=tuple(actors), signal=None)


def _add(scene: Scene, actor: Actor, ego: Motion) -> Scene:
    return replace(scene, actors=(actor, *scene.actors), ego=ego)


def _vehicle(rng: np.random.Generator, kind: str, gap_m: float, motion: Motion) -> Actor:
    return Actor(
        kind=kind,
        colour=paint_of(rng, kind),
        x_m=EGO_NOSE_M + gap_m + LENGTH_M[kind] / 2,
        y_m=0.0,
        yaw=0.0,
        motion=motion,
    )


def _cruise(scene: Scene, rng: np.random.Generator) -> Scene:
    """Put one vehicle far ahead."""
    kind = str(rng.choice(VEHICLES))
    lead = _vehicle(rng, kind, LEAD_GAP_M + 4.0, Motion(speed_mps=EGO_SPEED_MPS))
    return _add(scene, lead, Motion(speed_mps=EGO_SPEED_MPS))


def _lead_brakes(scene: Scene, rng: np.random.Generator) -> Scene:
    """Begin on an empty road, come up to a slower vehicle, and let it brake to a standstill."""
    kind = str(rng.choice(VEHICLES))
    motion = Motion(speed_mps=4.0, brake_s=EVENT_S)
    ego = Motion(speed_mps=12.0, brake_s=EVENT_S + REACTION_S, deceleration=8.0)
    start_gap_m = 22.0 + (ego.speed_mps - motion.speed_mps) * EVENT_S
    return _add(scene, _vehicle(rng, kind, start_gap_m, motion), ego)


def _pedestrian_crosses(scene: Scene, rng: np.random.Generator) -> Scene:
    """Let a pedestrian leave the pavement who reaches the ego lane at `EVENT_S`."""
    start_y, lane_edge = -8.8, -2.0
    walker = Actor(
        kind='pedestrian',
        colour=paint_of(rng, 'pedestrian'),
        x_m=EGO_SPEED_MPS * EVENT_S + 17.0,
        y_m=start_y,
        yaw=math.pi / 2,
        motion=Motion(speed_mps=STROLL_MPS, start_s=EVENT_S - (lane_edge - start_y) / STROLL_MPS),
    )
    return _add(scene, walker, Motion(speed_mps=EGO_SPEED_MPS, brake_s=EVENT_S + 0.3))


def _light_turns_red(scene: Scene, rng: np.random.Generator) -> Scene:
    """Let a traffic light turn yellow at `EVENT_S` and red two seconds later."""
    del rng
    states = ((-math.inf, 'green'), (EVENT_S, 'yellow'), (EVENT_S + 2.0, 'red'))
    signal = Signal(x_m=EGO_SPEED_MPS * EVENT_S + 20.0, states=states)
    ego = Motion(speed_mps=EGO_SPEED_MPS, brake_s=EVENT_S + 0.3, deceleration=4.2)
    return replace(
        scene,
        signal=signal,
        ego=ego,
        buildings=tuple(
            b for b in scene.buildings if not in_junction(b.x_m, b.length_m / 2, signal)
        ),
        plants=tuple(p for p in scene.plants if not in_junction(p.x_m, 1.0, signal)),
        actors=tuple(
            a for a in scene.actors if abs(a.y_m) < 5.5 or not in_junction(a.x_m, 4.0, signal)
        ),
    )


def _cut_in(scene: Scene, rng: np.random.Generator) -> Scene:
    """Let a car from the left lane move close in front of the ego vehicle."""
    motion = Motion(speed_mps=EGO_SPEED_MPS, shift_m=-LANE_M, shift_s=EVENT_S)
    car = replace(_vehicle(rng, 'car', 6.5, motion), y_m=LANE_M)
    others = tuple(a for a in scene.actors if abs(a.y_m - LANE_M) > 1.5)
    scene = replace(scene, actors=others, oncoming_left=False)
    return _add(scene, car, Motion(speed_mps=EGO_SPEED_MPS))


SCENARIOS: dict[str, Callable[[Scene, np.random.Generator], Scene]] = {
    'cruise': _cruise,
    'lead-brakes': _lead_brakes,
    'pedestrian-crosses': _pedestrian_crosses,
    'light-turns-red': _light_turns_red,
    'cut-in': _cut_in,
}
