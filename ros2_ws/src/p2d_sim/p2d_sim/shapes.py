"""Meshes of actors and traffic lights, heading along x."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from p2d_sim.meshes import Colour, Mesh, MeshBuilder
from p2d_sim.world import COLOURS, HEIGHT_M, LENGTH_M, WIDTH_M

GLASS = (38, 46, 60)
TYRE = (16, 16, 18)
SKIN = (205, 160, 130)
CLOTHES = (
    (150, 60, 60), (60, 80, 150), (70, 110, 70), (190, 180, 160), (50, 50, 55), (180, 140, 60),
)  # fmt: skip


@lru_cache(maxsize=512)
def actor_mesh(kind: str, colour: str, status: str, pose: int) -> Mesh:
    """Return the mesh of an actor, heading along x, on the ground at the origin.

    Args:
        kind: One of `KINDS`.
        colour: See `world.Actor`.
        status: One of `STATUSES`, visible in lamps and legs.
        pose: Number of the step of a walking pedestrian.
    """
    builder = MeshBuilder()
    if kind == 'car':
        _car(builder, COLOURS[colour], status)
    elif kind == 'truck':
        _truck(builder, COLOURS[colour], status)
    elif kind == 'bus':
        _bus(builder, COLOURS[colour], status)
    elif kind == 'cyclist':
        _cyclist(builder, CLOTHES[int(colour)])
    elif kind == 'pedestrian':
        _pedestrian(builder, CLOTHES[int(colour)], status, pose)
    elif kind == 'cone':
        _cone(builder)
    else:
        _barrier(builder)
    return builder.build()


def _lamps(builder: MeshBuilder, status: str, corner: Colour, size: float) -> None:
    """Add tail lamps at -x and head lamps at +x, which show the status of the vehicle."""
    x, y, z = corner
    tail = {'braking': (255, 40, 30), 'moving': (150, 12, 12)}.get(status, (70, 10, 12))
    head = (120, 120, 118) if status == 'parked' else (255, 250, 215)
    big = 1.5 if status == 'braking' else 1.0
    for side in (-1, 1):
        inner, outer = side * (y - 0.28 * size * big - 0.1), side * y
        span = (min(inner, outer), max(inner, outer))
        builder.on_end(-x - 0.02, span, (z, z + 0.22 * size * big), tail)
        builder.on_end(x + 0.02, span, (z - 0.1, z + 0.14 * size), head)
    if status == 'braking':
        builder.on_end(-x - 0.02, (-0.4 * size, 0.4 * size), (z + 0.42, z + 0.55), tail)


def _wheels(builder: MeshBuilder, xs: Sequence[float], y: float, radius: float) -> None:
    for side in (-1, 1):
        builder.start_group()
        for x in xs:
            builder.disc((x, side * y, radius), radius, TYRE, axis='y')
            builder.disc((x, side * (y + 0.01), radius), radius * 0.5, (120, 120, 125), axis='y')


def _car(builder: MeshBuilder, paint: Colour, status: str) -> None:
    length, width, height = LENGTH_M['car'] / 2, WIDTH_M['car'] / 2, HEIGHT_M['car']
    builder.box((-length, -width, 0.28), (length, width, 0.88), paint)
    _lamps(builder, status, (length, width, 0.58), 1.0)
    builder.on_end(-length - 0.02, (-0.26, 0.26), (0.42, 0.54), (225, 225, 215))
    builder.on_end(length + 0.02, (-0.5, 0.5), (0.4, 0.55), (30, 30, 32))
    cabin = width - 0.14
    builder.box((-1.7, -cabin, 0.88), (0.9, cabin, height), paint, lift_m=1.5)
    for side in (-1, 1):
        builder.on_side(side * (cabin + 0.01), (-1.5, -0.5), (0.95, height - 0.1), GLASS)
        builder.on_side(side * (cabin + 0.01), (-0.35, 0.75), (0.95, height - 0.1), GLASS)
    for x in (-1.71, 0.91):
        builder.on_end(x, (-cabin + 0.1, cabin - 0.1), (0.95, height - 0.08), GLASS)
    _wheels(builder, (-1.4, 1.4), width + 0.01, 0.33)


def _truck(builder: MeshBuilder, paint: Colour, status: str) -> None:
    length, width, height = LENGTH_M['truck'] / 2, WIDTH_M['truck'] / 2, HEIGHT_M['truck']
    builder.box((-length, -width, 0.75), (length - 2.1, width, height), paint)
    for x in np.linspace(-length + 0.9, length - 3.0, 4):
        for side in (-1, 1):
            ribs = np.multiply(paint, 0.62)
            builder.on_side(side * (width + 0.01), (x, x + 0.12), (0.8, height), ribs)
    builder.on_end(-length - 0.01, (-0.05, 0.05), (0.8, height), np.multiply(paint, 0.5))
    builder.box((-length, -width, 0.45), (length, width, 0.75), (62, 62, 66))
    _lamps(builder, status, (length, width, 0.5), 1.25)
    builder.box((length - 1.9, -width, 0.7), (length, width, 2.5), np.multiply(paint, 0.82))
    builder.on_end(length + 0.01, (-width + 0.15, width - 0.15), (1.5, 2.3), GLASS)
    for side in (-1, 1):
        builder.on_side(side * (width + 0.01), (length - 1.3, length - 0.3), (1.5, 2.3), GLASS)
    _wheels(builder, (-length + 1.0, -length + 2.2, length - 1.0), width + 0.01, 0.48)


def _bus(builder: MeshBuilder, paint: Colour, status: str) -> None:
    length, width, height = LENGTH_M['bus'] / 2, WIDTH_M['bus'] / 2, HEIGHT_M['bus']
    builder.box((-length, -width, 0.35), (length, width, height), paint)
    _lamps(builder, status, (length, width, 0.6), 1.3)
    for side in (-1, 1):
        y = side * (width + 0.01)
        for x in np.linspace(-length + 0.3, length - 1.7, 7):
            builder.on_side(y, (x, x + 1.15), (1.55, 2.6), GLASS)
        builder.on_side(y, (-length, length), (2.85, 2.98), (225, 225, 225))
    builder.on_end(-length - 0.01, (-width + 0.25, width - 0.25), (1.75, 2.75), GLASS)
    builder.on_end(length + 0.01, (-width + 0.12, width - 0.12), (1.2, 2.6), GLASS)
    builder.on_end(length + 0.02, (-0.8, 0.8), (2.75, 3.0), (250, 170, 40))
    _wheels(builder, (-length + 2.2, length - 2.2), width + 0.01, 0.48)


def _cyclist(builder: MeshBuilder, clothes: Colour) -> None:
    frame = (190, 60, 150)
    builder.start_group()
    for x in (-0.55, 0.55):
        builder.disc((x, 0.0, 0.36), 0.36, (35, 35, 38), axis='y')
        builder.disc((x, 0.01, 0.36), 0.26, (150, 150, 155), axis='y')
    builder.box((-0.68, -0.06, 0.0), (-0.6, 0.06, 0.72), (35, 35, 38))
    builder.box((0.6, -0.06, 0.0), (0.68, 0.06, 0.72), (35, 35, 38))
    builder.box((-0.5, -0.05, 0.45), (0.5, 0.05, 0.62), frame)
    builder.box((0.35, -0.35, 0.95), (0.45, 0.35, 1.05), frame)
    builder.box((-0.3, -0.18, 0.4), (0.0, 0.18, 0.95), (40, 40, 60))
    builder.box((-0.3, -0.26, 0.9), (0.2, 0.26, 1.45), clothes)
    builder.box((-0.05, -0.14, 1.45), (0.25, 0.14, 1.62), SKIN)
    builder.box((-0.08, -0.16, 1.6), (0.27, 0.16, 1.8), (235, 235, 60))


def _pedestrian(builder: MeshBuilder, clothes: Colour, status: str, pose: int) -> None:
    trousers = np.multiply(clothes, 0.45)
    stride = (0.16, 0.34, 0.26)[pose % 3] if status == 'walking' else 0.0
    for side, swing in ((-1, stride), (1, -stride)):
        builder.box(
            (swing - 0.12, side * 0.17 - 0.1, 0.0),
            (swing + 0.12, side * 0.17 + 0.1, 0.6),
            trousers,
        )
        builder.box((swing * 0.5 - 0.13, side * 0.17 - 0.11, 0.5),
                    (swing * 0.5 + 0.13, side * 0.17 + 0.11, 0.92), trousers)  # fmt: skip
        builder.box((-swing - 0.09, side * 0.37 - 0.07, 0.75),
                    (-swing + 0.09, side * 0.37 + 0.07, 1.4), clothes)  # fmt: skip
    builder.box((-0.19, -0.29, 0.85), (0.19, 0.29, 1.48), clothes)
    builder.box((-0.13, -0.13, 1.5), (0.13, 0.13, 1.8), SKIN)


def _cone(builder: MeshBuilder) -> None:
    builder.box((-0.34, -0.34, 0.0), (0.34, 0.34, 0.08), (60, 40, 30))
    for low, high, radius, colour in (
        (0.08, 0.4, 0.27, (245, 100, 20)),
        (0.4, 0.62, 0.2, (245, 245, 240)),
        (0.62, 0.95, 0.14, (245, 100, 20)),
    ):
        builder.box((-radius, -radius, low), (radius, radius, high), colour, lift_m=low)


def _barrier(builder: MeshBuilder) -> None:
    width = WIDTH_M['barrier'] / 2
    for y in (-width + 0.2, width - 0.2):
        builder.box((-0.2, y - 0.08, 0.0), (0.2, y + 0.08, 1.05), (110, 110, 112))
    for z in (0.4, 0.78):
        builder.box((-0.06, -width, z), (0.06, width, z + 0.3), (240, 240, 238))
        for y in np.linspace(-width, width - 0.55, 4):
            for x in (-0.07, 0.07):
                builder.on_end(x, (y, y + 0.28), (z, z + 0.3), (215, 30, 30))


@lru_cache(maxsize=16)
def signal_mesh(state: str) -> Mesh:
    """Return a traffic light on a mast with an arm, facing the ego vehicle, at colour `state`."""
    builder = MeshBuilder()
    builder.box((-0.1, -0.1, 0.0), (0.1, 0.1, 4.6), (70, 72, 74))
    builder.box((-0.08, 0.0, 4.35), (0.08, 2.4, 4.55), (70, 72, 74))
    lit = {'red': (255, 30, 25), 'yellow': (255, 215, 30), 'green': (40, 255, 110)}
    for y in (0.0, 2.4):
        z0 = 2.35
        builder.box((-0.25, y - 0.5, z0), (0.0, y + 0.5, z0 + 2.4), (22, 22, 24))
        for index, colour in enumerate(('green', 'yellow', 'red')):
            paint = lit[colour] if colour == state else np.multiply(lit[colour], 0.16)
            z = z0 + 0.42 + 0.78 * index
            builder.on_end(-0.26, (y - 0.36, y + 0.36), (z - 0.36, z + 0.36), paint)
    return builder.build()
