"""Sweeps come in one by one; each goes out with the sweeps before it that make up its clip.

A clip is what a model that was trained on several frames per camera sees: the newest sweep, and
those one, two, ... intervals before it. Frames are not decoded here.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from p2d_node.records import FrameSet
from p2d_node.units import NS_PER_MS

TOLERANCE = 0.5
"""A sweep lies nearer to its place in the clip than this share of the interval. Less would break
the clips of cameras whose period is no divisor of the interval: at 12 Hz sweeps lie up to 42 ms
from places that are 100 ms apart."""

SWEEPS_PER_PLACE = 4
"""Bounds memory where sweeps come much faster than the interval: each place of the clip still has
a sweep near enough."""


@dataclass(frozen=True, slots=True)
class ClipSettings:
    """What a clip consists of.

    Attributes:
        num_frames: Frames of each camera, the newest one included.
        interval_ns: Time from one frame to the next, nanoseconds.
    """

    num_frames: int = 1
    interval_ns: int = 100 * NS_PER_MS

    @property
    def reach_ns(self) -> int:
        """How long before the newest sweep the oldest one of its clip may lie, nanoseconds."""
        return round((self.num_frames - 1 + TOLERANCE) * self.interval_ns)

    @property
    def max_sweeps(self) -> int:
        """How many sweeps are held for coming clips."""
        return SWEEPS_PER_PLACE * self.num_frames


NO_CLIP = ClipSettings()


def find_earlier(newest_ns: int, stamps_ns: Sequence[int], settings: ClipSettings) -> list[int]:
    """Return the places of the earlier sweeps of a clip, oldest first.

    Where no sweep is near enough, the clip begins after that place.

    Args:
        newest_ns: Stamp of the newest sweep of the clip.
        stamps_ns: Of all sweeps, ascending; those that are not older are not used.
        settings: What a clip consists of.
    """
    found: list[int] = []
    for number in range(1, settings.num_frames):
        wanted_ns = newest_ns - number * settings.interval_ns
        place = bisect_left(stamps_ns, wanted_ns)
        beside = [i for i in (place - 1, place) if 0 <= i < len(stamps_ns)]
        nearest = min(beside, key=lambda i: abs(stamps_ns[i] - wanted_ns), default=None)
        if nearest is None:
            break
        if abs(stamps_ns[nearest] - wanted_ns) >= TOLERANCE * settings.interval_ns:
            break
        found.append(nearest)
    return found[::-1]


def most_crowded(stamps_ns: Sequence[int]) -> int:
    """Return the place of the sweep that clips miss least: it has the nearest neighbours.

    Args:
        stamps_ns: Of three or more sweeps, ascending. The first and the last one are not chosen.
    """
    inner = range(1, len(stamps_ns) - 1)
    return min(inner, key=lambda place: stamps_ns[place + 1] - stamps_ns[place - 1])


class ClipAssembler:
    """Finds the earlier sweeps of a clip. Use it from one thread at a time.

    It keeps the frames of the sweeps that a coming clip may need, at most `max_sweeps`.
    """

    def __init__(self, settings: ClipSettings) -> None:
        """Begin without any sweep."""
        self._settings = settings
        self._sweeps: list[FrameSet] = []

    def add(self, frame_set: FrameSet) -> FrameSet:
        """Return a sweep with the earlier sweeps of its clip.

        After a gap and after a jump of time the clip is shorter, and grows with the sweeps that
        follow. A sweep may come after a newer one.

        Args:
            frame_set: A sweep without `earlier`.
        """
        if self._settings.num_frames == 1:
            return frame_set
        if self._sweeps and self._sweeps[-1].epoch != frame_set.epoch:
            self._sweeps.clear()
        place = bisect_left(self._sweeps, frame_set.order, key=_order)
        before = self._sweeps[:place]
        places = find_earlier(frame_set.stamp_ns, [s.stamp_ns for s in before], self._settings)
        insort(self._sweeps, frame_set, key=_order)
        self._drop_old()
        return replace(frame_set, earlier=tuple(before[i] for i in places))

    def _drop_old(self) -> None:
        oldest_ns = self._sweeps[-1].stamp_ns - self._settings.reach_ns
        self._sweeps = [s for s in self._sweeps if s.stamp_ns >= oldest_ns]
        if len(self._sweeps) > self._settings.max_sweeps:
            del self._sweeps[most_crowded([s.stamp_ns for s in self._sweeps])]


def _order(frame_set: FrameSet) -> tuple[int, int]:
    return frame_set.order


def count_frames(cameras: Sequence[str]) -> Mapping[str, int]:
    """Return camera to the number of its pictures, in the order of their first pictures.

    Args:
        cameras: The camera of each picture; those of one camera stand side by side.
    """
    counts: dict[str, int] = {}
    for camera in cameras:
        counts[camera] = counts.get(camera, 0) + 1
    return counts
