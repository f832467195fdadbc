"""Meshes of the buildings, trees and lamp poles beside the road."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from p2d_sim.meshes import Mesh, MeshBuilder
from p2d_sim.world import Building, Plant


@lru_cache(maxsize=4096)
def building_mesh(building: Building) -> Mesh:
    """Return a building at the origin, with windows on the sides that face the road."""
    builder = MeshBuilder()
    half_x, half_y, height = building.length_m / 2, building.depth_m / 2, building.height_m
    builder.box((-half_x, -half_y, 0.0), (half_x, half_y, height), building.wall)
    side = -1.0 if building.y_m > 0 else 1.0
    y = side * (half_y + 0.02)
    dark = np.multiply(building.wall, 0.7)
    builder.on_side(y, (-half_x, half_x), (height - 0.5, height), dark)
    builder.on_side(y, (-half_x, half_x), (0.0, 0.6), np.multiply(building.wall, 0.55))
    storey = (height - 0.6) / building.storeys
    bay = building.length_m / building.columns
    for row in range(building.storeys):
        z = 0.9 + row * storey
        for column in range(building.columns):
            x = -half_x + (column + 0.2) * bay
            lit = 0.75 + 0.5 * ((row * 7 + column * 3 + building.columns) % 5) / 4
            pane = np.multiply(building.window, lit)
            builder.on_side(y, (x, x + 0.6 * bay), (z, z + 0.6 * storey), pane)
    _ends(builder, building, storey)
    return builder.build()


def _ends(builder: MeshBuilder, building: Building, storey: float) -> None:
    half_x, half_y = building.length_m / 2, building.depth_m / 2
    for row in range(building.storeys):
        z = 0.9 + row * storey
        for column in (-0.55, 0.15):
            y = column * half_y
            for x in (-half_x - 0.02, half_x + 0.02):
                builder.on_end(x, (y, y + 0.4 * half_y), (z, z + 0.55 * storey), building.window)


def plant_mesh(plant: Plant) -> Mesh:
    """Return a tree or a lamp pole at the origin."""
    return _plant_mesh(plant.height_m, plant.crown_m, plant.leaf, plant.shape_seed)


@lru_cache(maxsize=4096)
def _plant_mesh(
    height_m: float, crown_m: float, leaf_colour: tuple[int, int, int], shape_seed: int
) -> Mesh:
    builder = MeshBuilder()
    if crown_m == 0.0:
        builder.box((-0.07, -0.07, 0.0), (0.07, 0.07, height_m), (96, 98, 102))
        builder.box((-0.1, -0.6, height_m), (0.1, 0.6, height_m + 0.12), (80, 82, 86))
        return builder.build()
    rng = np.random.default_rng(shape_seed)
    trunk = height_m - crown_m
    builder.box((-0.14, -0.14, 0.0), (0.14, 0.14, trunk + 0.5), (84, 62, 46))
    builder.start_group()
    for _ in range(7):
        x, y, z = rng.uniform(-0.5, 0.5, 3) * crown_m
        leaf = np.multiply(leaf_colour, rng.uniform(0.6, 1.25))
        radius = crown_m * rng.uniform(0.25, 0.45)
        for axis in ('x', 'y'):
            builder.disc((x, y, trunk + crown_m / 2 + z), radius, leaf, axis=axis)
    return builder.build()
