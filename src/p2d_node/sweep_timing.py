"""Learns the timing of the cameras from their stamps: sweep period and exposure offsets."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from p2d_node.units import NS_PER_MS

Stamps = npt.NDArray[np.int64]

MAX_TOLERANCE_PERIODS = 0.49
"""Largest tolerance as a share of the shortest period of a camera."""

PERIODS_KEPT = 16
"""Frames of a peer are forgotten once half as many frames of the camera have followed them."""

MIN_USUAL_PERIODS = 0.5
"""Shortest period, as a share of the usual one; a frame that comes sooner is a stray."""

NO_LIMIT_NS = 2**62

MIN_PERIOD_NS = 2 * NS_PER_MS
"""Frames closer than this are a frame published twice, not a period."""

OFFSET_SAMPLES = 12
"""Frames per camera from which `auto` learns the offsets: one second of nuScenes."""

SHORT_GAPS, LONG_GAPS = 0.25, 0.66
"""Quantiles of the gaps between references that count as a short and as a long one."""

MAX_JITTER_GAPS = 0.33
"""Largest jitter that an offset explains, as a share of a short gap."""

MIN_JITTER_NS, MAX_JITTER_NS = 5 * NS_PER_MS, 25 * NS_PER_MS
"""Bounds of it."""

LOST_GAPS = 1.5
"""Gaps this many times a long one have lost a reference; a stamp inside may be of that."""

STAMPS_KEPT = 24
"""Recent frames per camera by which `auto` notices another offset: two seconds of nuScenes."""

MAX_MISSED_STAMPS = STAMPS_KEPT // 4
"""Of these, stamps that may miss the known offset, because their references were lost."""

MAX_UNMATCHED = 0.25
"""Share of references that may have no stamp at the known offset. Strays of a camera, or a higher
rate, make stamps without a reference, but no reference without a stamp."""

MORE_FRAMES = 1.25
"""A camera that sends so many times the frames of the reference has frames without a reference."""

MAX_OFFSET_PERIODS = 0.5
"""Longest offset, as a share of the usual period, that is not compared with smaller ones again."""

OFFSET_LEARNING_NS = 10_000 * NS_PER_MS
"""Time after which `auto` stops waiting for cameras that send no frames."""


class ShortestPeriod:
    """The shortest of the last periods of a camera.

    Any peer can send frames on its topic. Periods below half of the median are left out, and
    stamps are sorted, so fewer strays than frames change nothing; few stamps are kept, so many
    strays change it only while they come.
    """

    def __init__(self) -> None:
        self._stamps_ns: deque[int] = deque(maxlen=PERIODS_KEPT + 1)

    def add(self, stamp_ns: int) -> None:
        """Add the stamp of the next frame, in order of arrival."""
        self._stamps_ns.append(stamp_ns)

    def max_tolerance_ns(self) -> int:
        """Return the largest tolerance that does not reach a neighbouring frame, nanoseconds."""
        gaps_ns = (after - before for before, after in pairwise(sorted(self._stamps_ns)))
        periods_ns = sorted(gap for gap in gaps_ns if gap >= MIN_PERIOD_NS)
        if not periods_ns:
            return NO_LIMIT_NS
        usual_ns = periods_ns[(len(periods_ns) - 1) // 2]
        shortest_ns = periods_ns[bisect_left(periods_ns, MIN_USUAL_PERIODS * usual_ns)]
        return int(MAX_TOLERANCE_PERIODS * shortest_ns)


class OffsetLearner:
    """Learns each camera's exposure offset relative to the reference camera from recent stamps."""

    def __init__(self, cameras: tuple[str, ...], reference: str) -> None:
        self._reference = reference
        self._stamps: dict[str, deque[int]] = {name: deque(maxlen=STAMPS_KEPT) for name in cameras}
        # The references reach further back, so that every other stamp has one before it.
        self._stamps[reference] = deque(maxlen=2 * STAMPS_KEPT)
        self._first_arrival_ns: int | None = None

    def add(self, camera: str, stamp_ns: int, now_ns: int) -> None:
        """Add the stamp of a frame, ROS time, that arrived at `now_ns` of the steady clock."""
        if self._first_arrival_ns is None:
            self._first_arrival_ns = now_ns
        self._stamps[camera].append(stamp_ns)

    def ready(self, now_ns: int) -> bool:
        """Tell whether enough was seen at `now_ns` of the steady clock."""
        if all(len(stamps) >= OFFSET_SAMPLES for stamps in self._stamps.values()):
            return True
        if self._first_arrival_ns is None or len(self._stamps[self._reference]) < OFFSET_SAMPLES:
            return False
        return now_ns - self._first_arrival_ns >= OFFSET_LEARNING_NS

    def offsets_ns(self) -> dict[str, int]:
        """Return camera to exposure offset in nanoseconds; 0 for cameras without frames."""
        references = self._sorted_stamps(self._reference)
        offsets = {}
        for name in self._stamps:
            stamps = self._sorted_stamps(name)
            # Those from before the first reference would fit an offset to the next sweep only.
            offsets[name] = _find_offset_ns(stamps[stamps >= references[0]], references)
        return offsets

    def _sorted_stamps(self, camera: str) -> Stamps:
        return np.sort(np.array(self._stamps[camera], np.int64))

    def changed_offsets_ns(
        self, offsets_ns: Mapping[str, int], tolerance_ns: int
    ) -> dict[str, int]:
        """Return the new exposure offsets of cameras whose recent stamps the known ones miss.

        Args:
            offsets_ns: Camera to the known offset, nanoseconds.
            tolerance_ns: Largest error of an offset that is right.
        """
        references = self._sorted_stamps(self._reference)
        if len(references) < OFFSET_SAMPLES:
            return {}
        changed = {}
        for name in self._stamps:
            stamps = self._sorted_stamps(name)
            recent = stamps[(stamps >= references[0]) & (stamps <= references[-1])]
            if len(recent) < 2:
                continue
            known_ns = offsets_ns[name] - offsets_ns[self._reference]
            missed, unmatched = _misses(np.array([known_ns]), recent, references)
            if missed.sum() > MAX_MISSED_STAMPS and unmatched.mean() > MAX_UNMATCHED:
                # Those that fit are from before the change, and would fit no longer.
                recent = recent[missed[0]]
                self._stamps[name] = deque(recent.tolist(), maxlen=STAMPS_KEPT)
            elif len(recent) < OFFSET_SAMPLES or (
                abs(known_ns) <= MAX_OFFSET_PERIODS * _usual_period_ns(recent, references)
                and abs(_residual_ns(recent - known_ns, references)) <= tolerance_ns
            ):
                continue
            offset_ns = _find_offset_ns(recent, references)
            if abs(offset_ns - known_ns) > tolerance_ns:
                changed[name] = offset_ns + offsets_ns[self._reference]
        return changed


def _usual_period_ns(stamps: Stamps, references: Stamps) -> float:
    # Strays can make an offset of another sweep, which fits for ever at a constant period. Those
    # of one camera cannot make the period seem shorter than that of the other.
    return float(max(np.median(np.diff(one)) for one in (stamps, references)))


def _residual_ns(stamps: Stamps, references: Stamps) -> float:
    """Return the median distance of stamps, int64 [stamps], after their nearest references."""
    before_ns, after_ns = _around(stamps, references)
    is_before = stamps - before_ns < after_ns - stamps
    return float(np.median(stamps - np.where(is_before, before_ns, after_ns)))


def _around(points: Stamps, grid: Stamps) -> tuple[Stamps, Stamps]:
    """Return the stamps of a sorted grid before and after each point."""
    after = np.searchsorted(grid, points).clip(1, len(grid) - 1)
    return grid[after - 1], grid[after]


def _jitter_ns(*grids: Stamps) -> int:
    """Return the largest jitter that an offset explains."""
    short_ns = min(np.quantile(np.diff(grid), SHORT_GAPS) for grid in grids)
    return int(np.clip(MAX_JITTER_GAPS * short_ns, MIN_JITTER_NS, MAX_JITTER_NS))


def _misses(
    offsets: Stamps, stamps: Stamps, references: Stamps
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Tell which stamps have no reference at an offset, and which references no stamp.

    Args:
        offsets: int64 [offsets].
        stamps: int64 [stamps], sorted, two or more.
        references: int64 [references], sorted, two or more.

    Returns:
        Bool [offsets, stamps] and bool [offsets, references]. Where frames were lost, or not yet
        seen, nothing is known, and nothing is missed.
    """
    jitter_ns = _jitter_ns(stamps, references)
    shifts = offsets[:, None]
    return (
        _far_from(stamps - shifts, references, jitter_ns),
        _far_from(references + shifts, stamps, jitter_ns),
    )


def _far_from(points: Stamps, grid: Stamps, jitter_ns: int) -> npt.NDArray[np.bool_]:
    before_ns, after_ns = _around(points, grid)
    far = np.minimum(abs(points - before_ns), abs(points - after_ns)) > jitter_ns
    seen = (points >= before_ns) & (points <= after_ns)
    whole = after_ns - before_ns <= LOST_GAPS * np.quantile(np.diff(grid), LONG_GAPS)
    return np.asarray(far & seen & whole, np.bool_)


def _find_offset_ns(stamps: Stamps, references: Stamps) -> int:
    """Return the offset to reference stamps that explains most stamps, in nanoseconds.

    If the camera sends more frames than the reference, it is that which explains most references.
    With a varying sweep period only the offset within the true sweep is constant. With a constant
    period several are, and the smallest one is returned. With fewer than two stamps it is 0.

    Args:
        stamps: int64 [stamps], sorted.
        references: int64 [references], sorted, two or more.
    """
    if len(stamps) < 2:
        return 0
    nearest = np.searchsorted(references, stamps)[:, None] + np.arange(-2, 2)
    near = (stamps[:, None] - references[nearest.clip(0, len(references) - 1)]).ravel()
    jitter_ns = _jitter_ns(stamps, references)
    same = abs(near - near[:, None]) <= jitter_ns
    offsets = np.array([np.median(near[row]) for row in same], np.int64)
    missed, unmatched = (side.mean(axis=1) for side in _misses(offsets, stamps, references))
    num_references = ((references >= stamps[0]) & (references <= stamps[-1])).sum()
    if len(stamps) > MORE_FRAMES * num_references:
        missed = unmatched
    offset_ns = offsets[np.lexsort((abs(offsets), missed))[0]]
    return int(np.median(near[abs(near - offset_ns) <= jitter_ns]))
