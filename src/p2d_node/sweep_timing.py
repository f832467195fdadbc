"""Learns the timing of the cameras from their stamps: sweep period and exposure offsets."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import pairwise
import statistics

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

MAX_OFFSET_PERIODS = 0.5
"""Longest offset, as a share of the usual period, that is not compared with smaller ones again."""

OFFSET_LEARNING_NS = 10_000 * NS_PER_MS
"""Time after which `auto` stops waiting for cameras that send no frames."""


class ShortestPeriod:
    """The shortest of the last periods of a camera.

    Any peer can send frames on its topic. Periods below half of the median are left out, and
    stamps are sorted, so fewer strays than frames change nothing; few stamps are kept, so many
    strays change it only while they come.

    Attributes:
        max_tolerance_ns: Largest tolerance, in nanoseconds, that does not reach a neighbouring
            frame.
    """

    def __init__(self) -> None:
        self.max_tolerance_ns = 2**62
        self._stamps_ns: deque[int] = deque(maxlen=PERIODS_KEPT + 1)

    def add(self, stamp_ns: int) -> None:
        """Add the stamp of the next frame, in order of arrival."""
        self._stamps_ns.append(stamp_ns)
        gaps_ns = (after - before for before, after in pairwise(sorted(self._stamps_ns)))
        periods_ns = [gap for gap in gaps_ns if gap >= MIN_PERIOD_NS]
        if periods_ns:
            usual_ns = statistics.median_low(periods_ns)
            shortest_ns = min(p for p in periods_ns if p >= MIN_USUAL_PERIODS * usual_ns)
            self.max_tolerance_ns = int(MAX_TOLERANCE_PERIODS * shortest_ns)


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

    def forget(self) -> None:
        """Forget all stamps, after a jump of time."""
        for stamps in self._stamps.values():
            stamps.clear()

    def ready(self, now_ns: int) -> bool:
        """Tell whether enough was seen at `now_ns` of the steady clock."""
        if all(len(stamps) >= OFFSET_SAMPLES for stamps in self._stamps.values()):
            return True
        if self._first_arrival_ns is None or len(self._stamps[self._reference]) < OFFSET_SAMPLES:
            return False
        return now_ns - self._first_arrival_ns >= OFFSET_LEARNING_NS

    def offsets_ns(self) -> dict[str, int]:
        """Return camera to exposure offset in nanoseconds; 0 for cameras without frames."""
        references = _References(self._sorted_stamps(self._reference))
        offsets = {}
        for name in self._stamps:
            stamps = self._sorted_stamps(name)
            # Those from before the first reference would fit an offset to the next sweep only.
            offsets[name] = references.find_offset_ns(stamps[stamps >= references.stamps[0]])
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
        if len(self._stamps[self._reference]) < OFFSET_SAMPLES:
            return {}
        references = _References(self._sorted_stamps(self._reference))
        changed = {}
        for name in self._stamps:
            stamps = self._sorted_stamps(name)
            recent = stamps[(stamps >= references.stamps[0]) & (stamps <= references.stamps[-1])]
            # Strays can make an offset of another sweep, which fits for ever at a constant period.
            # Those of one camera cannot make the period seem shorter than that of the other.
            usual_ns = max(_usual_period_ns(references.stamps), _usual_period_ns(recent))
            known_ns = offsets_ns[name] - offsets_ns[self._reference]
            missed = references.missed(recent - known_ns)
            if missed.sum() > MAX_MISSED_STAMPS:
                # Those that fit are from before the change, and would fit no longer.
                recent = recent[missed]
                self._stamps[name] = deque(recent.tolist(), maxlen=STAMPS_KEPT)
            elif len(recent) < OFFSET_SAMPLES or (
                abs(known_ns) <= MAX_OFFSET_PERIODS * usual_ns
                and abs(references.residual_ns(recent - known_ns)) <= tolerance_ns
            ):
                continue
            offset_ns = references.find_offset_ns(recent)
            if abs(offset_ns - known_ns) > tolerance_ns:
                changed[name] = offset_ns + offsets_ns[self._reference]
        return changed


def _usual_period_ns(stamps: Stamps) -> float:
    return float(np.median(np.diff(stamps))) if len(stamps) > 1 else 0.0


class _References:
    """Recent stamps of the reference camera, to which an offset is fitted.

    Args:
        stamps: int64 [stamps], sorted, two or more.
    """

    def __init__(self, stamps: Stamps) -> None:
        self.stamps = stamps
        short_ns, self._long_ns = np.quantile(np.diff(stamps), (SHORT_GAPS, LONG_GAPS))
        self.jitter_ns = int(np.clip(MAX_JITTER_GAPS * short_ns, MIN_JITTER_NS, MAX_JITTER_NS))

    def missed(self, stamps: Stamps) -> npt.NDArray[np.bool_]:
        """Tell of each stamp less its offset, int64 [...], whether it should have had a reference.

        Nothing is known where references were lost, or were not yet seen.
        """
        before_ns, after_ns = self._around(stamps)
        far = np.minimum(abs(stamps - before_ns), abs(stamps - after_ns)) > self.jitter_ns
        known = (stamps >= before_ns) & (stamps <= after_ns)
        whole = after_ns - before_ns <= LOST_GAPS * self._long_ns
        return np.asarray(far & known & whole, np.bool_)

    def residual_ns(self, stamps: Stamps) -> float:
        """Return the median distance of stamps, int64 [stamps], after their nearest references."""
        before_ns, after_ns = self._around(stamps)
        is_before = stamps - before_ns < after_ns - stamps
        return float(np.median(stamps - np.where(is_before, before_ns, after_ns)))

    def _around(self, stamps: Stamps) -> tuple[Stamps, Stamps]:
        after = np.searchsorted(self.stamps, stamps).clip(1, len(self.stamps) - 1)
        return self.stamps[after - 1], self.stamps[after]

    def find_offset_ns(self, stamps: Stamps) -> int:
        """Return the offset that explains most stamps, int64 [stamps], sorted, in nanoseconds.

        With a varying sweep period only the offset within the true sweep is constant. With a
        constant period several are, and the smallest one is returned. Without stamps it is 0.
        """
        if not len(stamps):
            return 0
        nearest = np.searchsorted(self.stamps, stamps)[:, None] + np.arange(-2, 2)
        near = (stamps[:, None] - self.stamps[nearest.clip(0, len(self.stamps) - 1)]).ravel()
        same = abs(near - near[:, None]) <= self.jitter_ns
        offsets = np.array([np.median(near[row]) for row in same], np.int64)
        num_missed = self.missed(stamps - offsets[:, None]).sum(axis=1)
        offset_ns = offsets[np.lexsort((abs(offsets), num_missed))[0]]
        return int(np.median(near[abs(near - offset_ns) <= self.jitter_ns]))
