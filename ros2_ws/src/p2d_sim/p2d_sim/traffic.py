"""A scene and a time come in; the snapshot of that time goes out."""

from __future__ import annotations

import math

from p2d_sim.world import Actor, ActorState, Motion, RING_M, Scene, Snapshot, VEHICLES

WALKERS = ('pedestrian',)


def travelled(motion: Motion, time_s: float) -> tuple[float, float]:
    """Return the distance since time 0, metres, and the speed, metres per second."""
    moving_s = max(0.0, time_s - max(motion.start_s, 0.0))
    if time_s < motion.start_s:
        return 0.0, 0.0
    braking_s = max(0.0, time_s - motion.brake_s)
    if braking_s == 0.0 or motion.speed_mps == 0.0:
        return motion.speed_mps * moving_s, motion.speed_mps
    to_standstill_s = motion.speed_mps / motion.deceleration
    braking_s = min(braking_s, to_standstill_s)
    free_s = max(0.0, motion.brake_s - max(motion.start_s, 0.0))
    way = motion.speed_mps * free_s
    way += motion.speed_mps * braking_s - 0.5 * motion.deceleration * braking_s**2
    return way, motion.speed_mps - motion.deceleration * braking_s


def sideways(motion: Motion, time_s: float) -> float:
    """Return how far a lane change has moved the actor to the left by `time_s`, metres."""
    part = min(1.0, max(0.0, (time_s - motion.shift_s) / motion.shift_duration_s))
    return motion.shift_m * part * part * (3.0 - 2.0 * part)


def wrap_around(x_m: float) -> float:
    """Return `x_m` on the ring road, at most half a ring ahead or behind."""
    return (x_m + RING_M / 2) % RING_M - RING_M / 2


def snapshot_at(scene: Scene, time_s: float) -> Snapshot:
    """Return `scene` at `time_s`."""
    ego_x, ego_speed = travelled(scene.ego, time_s)
    states = tuple(_state(index, actor, time_s, ego_x) for index, actor in enumerate(scene.actors))
    signal_x, signal_state = None, ''
    if scene.signal is not None:
        signal_x = wrap_around(scene.signal.x_m - ego_x)
        signal_state = scene.signal.state_at(time_s)
    return Snapshot(
        scene=scene,
        time_s=time_s,
        ego_x_m=ego_x,
        ego_speed_mps=ego_speed,
        actors=states,
        signal_x_m=signal_x,
        signal_state=signal_state,
    )


def _state(index: int, actor: Actor, time_s: float, ego_x: float) -> ActorState:
    way, speed = travelled(actor.motion, time_s)
    shift = sideways(actor.motion, time_s)
    x = actor.x_m + way * math.cos(actor.yaw) - shift * math.sin(actor.yaw)
    y = actor.y_m + way * math.sin(actor.yaw) + shift * math.cos(actor.yaw)
    return ActorState(
        index=index,
        kind=actor.kind,
        colour=actor.colour,
        x_m=wrap_around(x - ego_x),
        y_m=y,
        yaw=actor.yaw,
        status=_status(actor, time_s, speed),
        speed_mps=speed,
    )


def _status(actor: Actor, time_s: float, speed: float) -> str:
    if actor.kind in VEHICLES:
        if actor.parked:
            return 'parked'
        return 'braking' if time_s >= actor.motion.brake_s else 'moving'
    if actor.kind == 'cyclist':
        return 'moving'
    if actor.kind in WALKERS:
        return 'walking' if speed > 0.0 else 'standing'
    return 'placed'
