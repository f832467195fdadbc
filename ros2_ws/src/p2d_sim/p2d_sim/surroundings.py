"""Random surroundings of a road: colours of the ground, buildings, trees and lamp poles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from p2d_sim.world import (
    Building,
    CROSSING_M,
    Plant,
    RING_M,
    Signal,
    Surfaces,
    WALK_HALF_M,
)

WALLS = (
    (176, 150, 124), (150, 96, 78), (190, 186, 176), (122, 126, 132), (164, 142, 96),
    (108, 92, 84), (186, 164, 150), (138, 148, 138),
)  # fmt: skip
"""Colours of walls, RGB."""

LEAVES = ((58, 92, 44), (84, 120, 56), (66, 104, 66), (110, 116, 50))
"""Colours of leaves, RGB."""


def make_surfaces(rng: np.random.Generator) -> Surfaces:
    """Return random colours of the ground."""
    grey = rng.uniform(78, 118)
    tint = rng.uniform(-6, 6, 3)
    verge = ((88, 118, 62), (132, 112, 82), (140, 138, 132))[int(rng.integers(3))]
    pavement = rng.uniform(138, 182) + rng.uniform(-10, 10, 3)
    return Surfaces(
        asphalt=_rgb(grey + tint),
        pavement=_rgb(pavement),
        verge=_rgb(np.array(verge) * rng.uniform(0.8, 1.15)),
        offset_m=float(rng.uniform(0.0, 40.0)),
    )


def _rgb(values: Sequence[float] | np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in np.clip(values, 0, 255))
    return red, green, blue


def in_junction(x: float, half: float, signal: Signal | None) -> bool:
    """Return True if something from `x - half` to `x + half` is on the crossing road, metres."""
    if signal is None:
        return False
    start, end = signal.x_m + 1.0, signal.x_m + CROSSING_M + 6.0
    return any(start - half < x + turn < end + half for turn in (-RING_M, 0.0, RING_M))


def make_buildings(rng: np.random.Generator, signal: Signal | None) -> list[Building]:
    """Return a row of random buildings on each side, without any on the crossing road."""
    buildings = []
    for side in (-1.0, 1.0):
        x = -RING_M / 2
        while x < RING_M / 2 - 8.0:
            length = float(rng.uniform(7.0, 16.0))
            depth, height = float(rng.uniform(6.0, 10.0)), float(rng.uniform(3.5, 13.0))
            centre = x + length / 2
            x += length + float(rng.choice([0.3, 2.0, 6.0]))
            wall = rng.uniform(0.75, 1.15) * np.array(WALLS[int(rng.integers(len(WALLS)))])
            if in_junction(centre, length / 2, signal):
                continue
            buildings.append(
                Building(
                    x_m=centre,
                    y_m=side * (WALK_HALF_M + 1.0 + depth / 2 + float(rng.uniform(0.0, 3.0))),
                    length_m=length,
                    depth_m=depth,
                    height_m=height,
                    wall=_rgb(wall),
                    window=_rgb(rng.uniform(45, 130) + rng.uniform(-15, 25, 3)),
                    storeys=max(1, int(height / rng.uniform(2.8, 4.0))),
                    columns=max(2, int(length / rng.uniform(1.8, 3.5))),
                )
            )
    return buildings


def make_plants(rng: np.random.Generator, signal: Signal | None) -> list[Plant]:
    """Return random trees and lamp poles on each side, without any on the crossing road."""
    plants = []
    for side in (-1.0, 1.0):
        x = -RING_M / 2 + float(rng.uniform(0.0, 8.0))
        while x < RING_M / 2:
            tree = bool(rng.random() < 0.6)
            plant = Plant(
                x_m=x,
                y_m=side * float(rng.uniform(11.7, 12.2)),
                height_m=float(rng.choice([4.0, 5.0, 6.0])),
                crown_m=float(rng.choice([2.0, 2.6, 3.2])) if tree else 0.0,
                leaf=LEAVES[int(rng.integers(len(LEAVES)))],
                shape_seed=int(rng.integers(8)),
            )
            x += float(rng.uniform(6.0, 15.0))
            if not in_junction(plant.x_m, 1.0, signal):
                plants.append(plant)
    return plants
