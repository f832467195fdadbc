"""Frozen records of a scene and of one moment of it, and the sizes of what is in it.

Frames: x forward, y left, z up, in metres. A scene is in the frame of the ego vehicle at time 0, a
snapshot in the frame of the ego vehicle at its own time.
"""

from __future__ import annotations

from dataclasses import dataclass
import math

KINDS = ('car', 'truck', 'bus', 'cyclist', 'pedestrian', 'cone', 'barrier')
"""Kinds of actors, in the order of their class numbers from 1; 0 is background."""

VEHICLES = ('car', 'truck', 'bus')
OBSTACLES = ('cone', 'barrier')

COLOURS = {
    'red': (200, 28, 32),
    'blue': (30, 70, 205),
    'green': (25, 135, 50),
    'yellow': (235, 195, 25),
    'white': (236, 236, 240),
    'black': (24, 24, 28),
}
"""Colours of vehicles, RGB."""

CONDITIONS = ('day', 'dusk', 'rain')
LIGHTS = ('red', 'yellow', 'green')
STATUSES = ('moving', 'braking', 'parked', 'walking', 'standing', 'placed')

LENGTH_M = {
    'car': 4.5, 'truck': 7.5, 'bus': 10.5, 'cyclist': 1.8, 'pedestrian': 0.6, 'cone': 0.5,
    'barrier': 0.5,
}  # fmt: skip
WIDTH_M = {
    'car': 1.9, 'truck': 2.4, 'bus': 2.6, 'cyclist': 0.7, 'pedestrian': 0.7, 'cone': 0.5,
    'barrier': 2.2,
}  # fmt: skip
HEIGHT_M = {
    'car': 1.55, 'truck': 3.2, 'bus': 3.2, 'cyclist': 1.8, 'pedestrian': 1.8, 'cone': 0.95,
    'barrier': 1.1,
}  # fmt: skip

LANE_M = 3.5
ROAD_HALF_M = 5.25
STRIP_HALF_M = 8.0
WALK_HALF_M = 12.0
"""Half widths of the three lanes, of the parking strips and of the pavements around them."""

CROSSING_M = 9.0
"""Width of a crossing road."""

RING_M = 160.0
"""The road repeats after this length, so that a drive never ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """How an actor moves along its heading, as a function of time.

    Attributes:
        speed_mps: Speed before braking.
        start_s: Time before which it stands still.
        brake_s: Time from which it slows down by `deceleration` until it stands.
        deceleration: Metres per second squared.
        shift_m: Distance of a move to the left.
        shift_s: Time at which that move begins.
        shift_duration_s: Its duration.
    """

    speed_mps: float = 0.0
    start_s: float = -math.inf
    brake_s: float = math.inf
    deceleration: float = 4.0
    shift_m: float = 0.0
    shift_s: float = math.inf
    shift_duration_s: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Something on or beside the road that the questions are about.

    Attributes:
        kind: One of `KINDS`.
        colour: One of `COLOURS` for vehicles; the number of its clothes for persons; else empty.
        x_m: Position at time 0 along the road.
        y_m: Position at time 0 to the left.
        yaw: Heading, radians, 0 along the road, positive to the left.
        motion: How it moves.
        parked: True for a parked vehicle.
    """

    kind: str
    colour: str
    x_m: float
    y_m: float
    yaw: float
    motion: Motion
    parked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Building:
    """A box beside the road."""

    x_m: float
    y_m: float
    length_m: float
    depth_m: float
    height_m: float
    wall: tuple[int, int, int]
    window: tuple[int, int, int]
    storeys: int
    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """A tree, or a lamp pole if `crown_m` is 0."""

    x_m: float
    y_m: float
    height_m: float
    crown_m: float
    leaf: tuple[int, int, int]
    shape_seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Surfaces:
    """Base colours of the ground, RGB, and the offset of its texture along the road."""

    asphalt: tuple[int, int, int]
    pavement: tuple[int, int, int]
    verge: tuple[int, int, int]
    offset_m: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A traffic light over time.

    Attributes:
        x_m: Position of the stop line.
        states: (time in seconds, colour from then on), ascending; the first time is -inf.
    """

    x_m: float
    states: tuple[tuple[float, str], ...]

    def state_at(self, time_s: float) -> str:
        """Return the colour at `time_s`."""
        return [state for since, state in self.states if since <= time_s][-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A piece of road with everything on it, over time."""

    seed: int
    conditions: str
    oncoming_left: bool
    surfaces: Surfaces
    ego: Motion
    actors: tuple[Actor, ...]
    buildings: tuple[Building, ...]
    plants: tuple[Plant, ...]
    signal: Signal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorState:
    """An actor at one moment, in the ego frame of that moment.

    Attributes:
        index: Position in the actors of the scene; its id in id maps is `index + 1`.
        status: One of `STATUSES`.
        speed_mps: Speed along its heading.
    """

    index: int
    kind: str
    colour: str
    x_m: float
    y_m: float
    yaw: float
    status: str
    speed_mps: float

    @property
    def distance_m(self) -> float:
        """Distance of its centre from the origin of the ego frame."""
        return math.hypot(self.x_m, self.y_m)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One moment of a scene, in the ego frame of that moment.

    Attributes:
        scene: The scene.
        time_s: Time in the scene.
        ego_x_m: Distance that the ego vehicle has driven.
        ego_speed_mps: Its speed.
        actors: States of all actors.
        signal_x_m: Position of the stop line; None without a traffic light.
        signal_state: Colour of the traffic light; empty without one.
    """

    scene: Scene
    time_s: float
    ego_x_m: float
    ego_speed_mps: float
    actors: tuple[ActorState, ...]
    signal_x_m: float | None
    signal_state: str
