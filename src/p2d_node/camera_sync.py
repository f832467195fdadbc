"""Groups stamped camera frames into sets: one frame per camera, all of one sweep.

A sweep is recognised by time alone: the stamp of a frame minus the exposure offset of its camera
is the start of its sweep. Frames within the tolerance of one start form a set. The tolerance
stays below half of the sweep period, so a frame is never nearer to a neighbouring sweep, and no
set mixes two sweeps. Frames are not decoded here, so an unused frame costs little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
import copy
from dataclasses import dataclass, field
import statistics
import time
from typing import Any

from p2d_node.config import SyncConfig
from p2d_node.errors import ConfigError
from p2d_node.records import CameraFrame, FrameSet
from p2d_node.sweep_timing import NO_LIMIT_NS, OffsetLearner, ShortestPeriod
from p2d_node.units import NS_PER_MS

MAX_OPEN_SWEEPS = 8
"""Bounds memory: 8 sweeps of six raw 1600x900 frames take 207 MB. 12 Hz needs 2 or 3."""

RESIDUALS_KEPT = 24
"""Sets over which the residual of a camera is taken: two seconds at 12 Hz."""

FOLLOW_EVERY_FRAMES = 4
"""Frames of the reference camera between two looks at the periods of all cameras, and for changed
exposure offsets."""

MIN_CLOCK_RATE = 0.01
"""Bounds the deadline while a simulated clock is paused."""

CLOSED_SWEEPS_REMEMBERED = 32
"""Closed sweeps whose times are kept to tell late frames from new ones."""


@dataclass(slots=True)
class SyncCounters:
    """Counters of frames and sets since the start.

    Attributes:
        complete: Sets with a frame of every camera.
        partial: Sets returned with cameras missing, after the deadline.
        dropped: Sets closed with cameras missing, by the deadline or by `MAX_OPEN_SWEEPS`, and
            not returned.
        late: Frames whose sweep was already closed.
        duplicate: Frames whose sweep already has a frame of this camera.
        reset: Backward jumps of time.
        relearned: Camera to number of times its learned exposure offset was replaced.
        unstamped: Camera to number of frames with stamp 0, for which the arrival time is used.
        received: Camera to number of frames.
        missing: Camera to number of sets that were closed without it.
    """

    complete: int = 0
    partial: int = 0
    dropped: int = 0
    late: int = 0
    duplicate: int = 0
    reset: int = 0
    relearned: dict[str, int] = field(default_factory=dict)
    unstamped: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)

    def copy(self) -> SyncCounters:
        """Return the present counts, which do not change any more."""
        return copy.deepcopy(self)


@dataclass(slots=True)
class _OpenSweep:
    start_ns: int
    epoch: int
    first_arrival_ns: int
    frames: dict[str, CameraFrame] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _ClosedSweep:
    start_ns: int
    closed_ns: int
    cameras: frozenset[str]


class SweepSynchronizer:
    """Groups the frames of several cameras into sweeps.

    Not thread-safe: call it from one thread, or under one lock. It never blocks. The cost of a
    call is bounded, and memory is bounded by `MAX_OPEN_SWEEPS`. A set is returned when it is
    complete, so with arrival jitter it may be returned before an older set; `FrameSet.order`
    gives the order of capture.
    """

    def __init__(
        self,
        exposure_offsets_ms: Mapping[str, float],
        config: SyncConfig | None = None,
        *,
        missing_camera_policy: str = 'skip',
        clock_ns: Callable[[], int] = time.monotonic_ns,
        stamp_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Set up for the cameras named in `exposure_offsets_ms`, in this order.

        Args:
            exposure_offsets_ms: Camera to time of exposure after the start of the sweep.
            config: Tolerance, deadline, reference camera, source of the offsets.
            missing_camera_policy: `skip` or `drop_view`: whether a set with cameras missing is
                dropped or returned at the deadline.
            clock_ns: Steady clock in nanoseconds, for arrivals and deadlines.
            stamp_clock_ns: ROS time in nanoseconds, used for frames whose stamp is 0.

        Raises:
            ConfigError: The reference camera is not among the cameras.
        """
        self.config = config or SyncConfig()
        self.cameras = tuple(exposure_offsets_ms)
        self.reference_camera = self.config.reference_of(self.cameras)
        if self.reference_camera not in self.cameras:
            raise ConfigError(
                f'sync.reference_camera: got {self.reference_camera!r}, '
                f'allowed: {", ".join(self.cameras)}'
            )
        self.missing_camera_policy = missing_camera_policy
        self.offsets_ns = {
            name: round(offset * NS_PER_MS) for name, offset in exposure_offsets_ms.items()
        }
        none = dict.fromkeys(self.cameras, 0)
        self.counters = SyncCounters(
            relearned={**none}, unstamped={**none}, received={**none}, missing={**none}
        )
        self.learning = self.config.exposure_offsets == 'auto'
        self._residuals_ns: dict[str, deque[int]] = {
            name: deque(maxlen=RESIDUALS_KEPT) for name in self.cameras
        }
        self._clock_rate = 1.0
        self._clock_ns = clock_ns
        self._stamp_clock_ns = stamp_clock_ns
        self._deadline_ns = round(self.config.deadline_ms * NS_PER_MS)
        self._reset_threshold_ns = round(self.config.reset_threshold_ms * NS_PER_MS)
        self._tolerance_ns = round(self.config.tolerance_ms * NS_PER_MS)
        self._periods = {name: ShortestPeriod() for name in self.cameras}
        self._period_limit_ns = self._common_limit_ns = NO_LIMIT_NS
        self._learner = (
            OffsetLearner(self.cameras, self.reference_camera) if self.learning else None
        )
        self._open: list[_OpenSweep] = []
        self._closed: deque[_ClosedSweep] = deque(maxlen=CLOSED_SWEEPS_REMEMBERED)
        self._ready: deque[FrameSet] = deque()
        self._newest_ns: int | None = None
        self._newest_arrival_ns = 0
        self._epoch = 0

    def residual_ns(self, camera: str) -> int | None:
        """Return how far the stamps of a camera are from where its exposure offset puts them.

        Returns:
            Nanoseconds: median, over the last sets, of the stamp minus the exposure offset minus
            the median of that over all cameras. None before the first set.
        """
        residuals = tuple(self._residuals_ns[camera])
        return int(statistics.median(residuals)) if residuals else None

    def set_clock_rate(self, rate: float) -> None:
        """Wait longer for frames of a slow replay.

        Args:
            rate: Seconds of the cameras' clock per second of the steady clock; above 1 counts
                as 1.
        """
        self._clock_rate = min(1.0, max(rate, MIN_CLOCK_RATE))

    @property
    def tolerance_ns(self) -> int:
        """The tolerance in use: the configured one, or less if the sweep period is short.

        The reference camera tells the period, and half of the cameras, so strays on one topic
        cannot make it seem long.
        """
        return min(self._tolerance_ns, self._period_limit_ns, self._common_limit_ns)

    def push(
        self, camera: str, stamp_ns: int, payload: Any, *, arrival_ns: int | None = None
    ) -> FrameSet | None:
        """Add a frame; return a set that is complete or whose deadline has passed.

        Args:
            camera: One of the configured cameras.
            stamp_ns: Capture time, ROS time; 0 means unknown, and the arrival time is used.
            payload: The frame, which is not changed.
            arrival_ns: Time at which the frame reached this machine, steady clock; None: now.
                Deadlines are measured with it, so a process that paused does not drop frames
                that arrived in time.

        Returns:
            A set, or None. If more sets are ready, `poll` returns them.

        Raises:
            ConfigError: The camera is not configured.
        """
        if camera not in self.offsets_ns:
            raise ConfigError(f'camera: got {camera!r}, allowed: {", ".join(self.cameras)}')
        now_ns = self._clock_ns() if arrival_ns is None else arrival_ns
        self.counters.received[camera] += 1
        if stamp_ns == 0:
            self.counters.unstamped[camera] += 1
            stamp_ns = self._stamp_clock_ns()
        self._close_expired(now_ns)
        if self._learner is not None:
            self._learn(self._learner, camera, stamp_ns, now_ns)
        if not self.learning:
            self._place(CameraFrame(camera, stamp_ns, payload), now_ns)
        return self._ready.popleft() if self._ready else None

    def poll(self, *, delay_ns: int = 0) -> list[FrameSet]:
        """Close the sets whose deadline has passed and return every set that is ready.

        Args:
            delay_ns: Current delay between the arrival of a frame and its `push`. Deadlines are
                extended by it.
        """
        self._close_expired(self._clock_ns() - delay_ns)
        ready = list(self._ready)
        self._ready.clear()
        return ready

    def _place(self, frame: CameraFrame, now_ns: int) -> None:
        start_ns = frame.stamp_ns - self.offsets_ns[frame.camera]
        self._note_period(frame)
        sweep = self._nearest(start_ns)
        if isinstance(sweep, _ClosedSweep):
            if frame.camera in sweep.cameras:
                self.counters.duplicate += 1
            else:
                self.counters.late += 1
            return
        if sweep is None:
            sweep = self._start_sweep(start_ns, now_ns)
        elif frame.camera in sweep.frames:
            self.counters.duplicate += 1
            return
        sweep.frames[frame.camera] = frame
        if len(sweep.frames) == len(self.cameras):
            self._close(sweep, now_ns)

    def _note_period(self, frame: CameraFrame) -> None:
        period = self._periods[frame.camera]
        period.add(frame.stamp_ns)
        if frame.camera != self.reference_camera:
            return
        self._period_limit_ns = period.max_tolerance_ns()
        if self.counters.received[frame.camera] % FOLLOW_EVERY_FRAMES == 0:
            limits_ns = (each.max_tolerance_ns() for each in self._periods.values())
            self._common_limit_ns = statistics.median_low(limits_ns)

    def _nearest(self, start_ns: int) -> _OpenSweep | _ClosedSweep | None:
        best: _OpenSweep | _ClosedSweep | None = None
        best_ns = self.tolerance_ns
        sweeps: tuple[_OpenSweep | _ClosedSweep, ...] = (*self._open, *self._closed)
        for sweep in sweeps:
            distance_ns = abs(start_ns - sweep.start_ns)
            if distance_ns <= best_ns:
                best, best_ns = sweep, distance_ns
        return best

    def _start_sweep(self, start_ns: int, now_ns: int) -> _OpenSweep:
        newest_ns = self._newest_ns
        if newest_ns is not None and self._is_jump_back(start_ns, newest_ns, now_ns):
            # Sweeps from before the jump stay open until their deadline, because their last
            # frames may still arrive. The epoch separates them from later sweeps.
            self.counters.reset += 1
            self._epoch += 1
            newest_ns = None
        if newest_ns is None or start_ns > newest_ns + self.tolerance_ns:
            self._newest_ns, self._newest_arrival_ns = start_ns, now_ns
        if len(self._open) == MAX_OPEN_SWEEPS:
            self._close(self._open[0], now_ns)
        sweep = _OpenSweep(start_ns, self._epoch, now_ns)
        self._open.append(sweep)
        return sweep

    def _is_jump_back(self, start_ns: int, newest_ns: int, now_ns: int) -> bool:
        """Tell a jump of time from a late sweep.

        A bag shorter than the threshold that loops is known by its lack of newer stamps.
        """
        if start_ns < newest_ns - self._reset_threshold_ns:
            return True
        is_older = start_ns < newest_ns - self.tolerance_ns
        silent_ns = (now_ns - self._newest_arrival_ns) * self._clock_rate
        return is_older and silent_ns > self._reset_threshold_ns

    def _close_expired(self, now_ns: int) -> None:
        deadline_ns = self._deadline_ns / self._clock_rate
        # Sweeps are opened in order of arrival, so the first one expires first.
        while self._open and now_ns - self._open[0].first_arrival_ns >= deadline_ns:
            self._close(self._open[0], now_ns)
        # Kept for one more deadline only, so that a short bag can loop.
        while self._closed and now_ns - self._closed[0].closed_ns > deadline_ns:
            self._closed.popleft()

    def _close(self, sweep: _OpenSweep, now_ns: int) -> None:
        self._open.remove(sweep)
        self._closed.append(_ClosedSweep(sweep.start_ns, now_ns, frozenset(sweep.frames)))
        missing = tuple(name for name in self.cameras if name not in sweep.frames)
        for name in missing:
            self.counters.missing[name] += 1
        self._note_residuals(sweep)
        if not missing:
            self.counters.complete += 1
        elif self._is_returned_partial(sweep):
            self.counters.partial += 1
        else:
            self.counters.dropped += 1
            return
        self._ready.append(self._frame_set(sweep, missing, now_ns))

    def _note_residuals(self, sweep: _OpenSweep) -> None:
        starts_ns = {n: f.stamp_ns - self.offsets_ns[n] for n, f in sweep.frames.items()}
        # Not the start by the reference camera, which may itself be the one that is off.
        start_ns = statistics.median_low(starts_ns.values())
        for name, camera_start_ns in starts_ns.items():
            self._residuals_ns[name].append(camera_start_ns - start_ns)

    def _is_returned_partial(self, sweep: _OpenSweep) -> bool:
        return (
            self.missing_camera_policy == 'drop_view'
            and len(sweep.frames) >= self.config.min_views
        )

    def _frame_set(self, sweep: _OpenSweep, missing: tuple[str, ...], now_ns: int) -> FrameSet:
        reference = self.reference_camera
        frame = sweep.frames.get(reference)
        return FrameSet(
            stamp_ns=frame.stamp_ns if frame else sweep.start_ns + self.offsets_ns[reference],
            frames={name: sweep.frames[name] for name in self.cameras if name in sweep.frames},
            missing=missing,
            epoch=sweep.epoch,
            first_arrival_ns=sweep.first_arrival_ns,
            closed_ns=self._clock_ns(),
        )

    def _learn(self, learner: OffsetLearner, camera: str, stamp_ns: int, now_ns: int) -> None:
        learner.add(camera, stamp_ns, now_ns)
        if self.learning and learner.ready(now_ns):
            self.offsets_ns = learner.offsets_ns()
            self.learning = False
        elif not self.learning and camera == self.reference_camera:
            self._follow_offsets(learner)

    def _follow_offsets(self, learner: OffsetLearner) -> None:
        """Replace the offset of a camera that has another phase since it restarted."""
        if self.counters.received[self.reference_camera] % FOLLOW_EVERY_FRAMES:
            return
        changed = learner.changed_offsets_ns(self.offsets_ns, self.tolerance_ns // 3)
        for name, offset_ns in changed.items():
            self.offsets_ns[name] = offset_ns
            self.counters.relearned[name] += 1
            self._residuals_ns[name].clear()
