"""Meshes: coloured polygons in the frame of an object, their builder, and how to join them.

A mesh is a list of groups. Once the faces seen from behind are left out, the faces of a group can
be drawn in their order, because a group is nearly convex.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
import math
from typing import Any

import numpy as np
import numpy.typing as npt

CORNERS = 8
"""Vertices per polygon; polygons with fewer repeat their last one."""

FloatArray = npt.NDArray[np.float64]
Colour = Sequence[float] | npt.NDArray[Any]
"""RGB, 0 to 255; also the type of corners and spans."""

SUN = np.array([0.35, 0.5, 0.8]) / np.linalg.norm([0.35, 0.5, 0.8])
"""Direction of the light that shades the sides of boxes."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """Coloured polygons of one or several objects.

    Attributes:
        points: float64 [faces, 8, 3], metres.
        colours: float64 [faces, 3], RGB, 0..255.
        groups: int64 [faces], numbered from 0.
        two_sided: bool [faces], also visible from behind.
        solid: bool [faces], drawn into id maps; details on a solid face are not.
        lift_m: float64 [faces], metres by which the group is sorted nearer than it is.
    """

    points: FloatArray
    colours: FloatArray
    groups: npt.NDArray[np.int64]
    two_sided: npt.NDArray[np.bool_]
    solid: npt.NDArray[np.bool_]
    lift_m: FloatArray

    def placed(self, x_m: float, y_m: float, yaw: float) -> Mesh:
        """Return the mesh turned by `yaw` and moved to x, y."""
        c, s = math.cos(yaw), math.sin(yaw)
        turned = self.points @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
        return replace(self, points=turned + np.array([x_m, y_m, 0.0]))


class MeshBuilder:
    """Collects the faces of a mesh. Not thread-safe."""

    def __init__(self) -> None:
        self._faces: list[tuple[FloatArray, Colour, int, bool, bool, float]] = []
        self._group = -1
        self._lift_m = 0.0

    def start_group(self, lift_m: float = 0.0) -> None:
        """Start a group: its faces are sorted as one object that is `lift_m` metres nearer."""
        self._group += 1
        self._lift_m = lift_m

    def face(
        self, points: Sequence[Colour], colour: Colour, *, two_sided: bool = False, solid: bool
    ) -> None:
        """Add a polygon of up to 8 corners, counter-clockwise as seen from outside."""
        corners = list(points) + [points[-1]] * (CORNERS - len(points))
        self._faces.append(
            (np.array(corners, float), colour, self._group, two_sided, solid, self._lift_m)
        )

    def box(self, low: Colour, high: Colour, colour: Colour, *, lift_m: float = 0.0) -> None:
        """Add a box without underside as a group."""
        self.start_group(lift_m)
        (x0, y0, z0), (x1, y1, z1) = low, high
        sides = (
            (((x1, y0, z0), (x1, y1, z0), (x1, y1, z1), (x1, y0, z1)), (1, 0, 0)),
            (((x0, y1, z0), (x0, y0, z0), (x0, y0, z1), (x0, y1, z1)), (-1, 0, 0)),
            (((x1, y1, z0), (x0, y1, z0), (x0, y1, z1), (x1, y1, z1)), (0, 1, 0)),
            (((x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)), (0, -1, 0)),
            (((x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)), (0, 0, 1)),
        )
        for corners, normal in sides:
            light = 0.78 + 0.27 * float(np.dot(normal, SUN))
            self.face(corners, np.multiply(colour, light), solid=True)

    def on_side(self, y: float, x: Colour, z: Colour, colour: Colour) -> None:
        """Add a rectangle on the left (y > 0) or right side."""
        x0, x1 = (x[1], x[0]) if y > 0 else (x[0], x[1])
        corners = ((x0, y, z[0]), (x1, y, z[0]), (x1, y, z[1]), (x0, y, z[1]))
        self.face(corners, colour, solid=False)

    def on_end(self, x: float, y: Colour, z: Colour, colour: Colour) -> None:
        """Add a rectangle on the front (x > 0) or rear side."""
        y0, y1 = (y[0], y[1]) if x > 0 else (y[1], y[0])
        corners = ((x, y0, z[0]), (x, y1, z[0]), (x, y1, z[1]), (x, y0, z[1]))
        self.face(corners, colour, solid=False)

    def disc(self, centre: Colour, radius: float, colour: Colour, *, axis: str) -> None:
        """Add an octagon perpendicular to the axis x or y, visible from both sides."""
        turns = [math.pi / 4 * i + math.pi / 8 for i in range(CORNERS)]
        a, z = [radius * math.cos(t) for t in turns], [radius * math.sin(t) for t in turns]
        x0, y0, z0 = centre
        if axis == 'y':
            points = [(x0 + u, y0, z0 + w) for u, w in zip(a, z, strict=True)]
        else:
            points = [(x0, y0 + u, z0 + w) for u, w in zip(a, z, strict=True)]
        self.face(points, colour, two_sided=True, solid=True)

    def build(self) -> Mesh:
        """Return the mesh."""
        points, colours, groups, two_sided, solid, lift_m = zip(*self._faces, strict=True)
        return Mesh(
            np.stack(points),
            np.clip(np.array(colours, float), 0.0, 255.0),
            np.array(groups),
            np.array(two_sided),
            np.array(solid),
            np.array(lift_m),
        )


def join(meshes: Sequence[Mesh]) -> tuple[Mesh, npt.NDArray[np.int64]]:
    """Return one mesh of all, and for each face the number of its mesh, int64 [faces]."""
    counts = [int(mesh.groups[-1]) + 1 for mesh in meshes]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    joined = Mesh(
        np.concatenate([m.points for m in meshes]),
        np.concatenate([m.colours for m in meshes]),
        np.concatenate([m.groups + s for m, s in zip(meshes, starts, strict=True)]),
        np.concatenate([m.two_sided for m in meshes]),
        np.concatenate([m.solid for m in meshes]),
        np.concatenate([m.lift_m for m in meshes]),
    )
    return joined, np.repeat(np.arange(len(meshes)), [len(m.groups) for m in meshes])
