from dataclasses import dataclass, replace
import random
import weakref

from hypothesis import given, settings
from hypothesis import strategies as st
from nuscenes_timing import Arrival, simulate_nuscenes
from p2d_node.camera_sync import MAX_OPEN_SWEEPS, SweepSynchronizer
from p2d_node.config import NUSCENES_EXPOSURE_OFFSETS_MS, SyncConfig
from p2d_node.records import FrameSet, NUSCENES_CAMERAS
from p2d_node.units import NS_PER_MS

OFFSETS = {name: NUSCENES_EXPOSURE_OFFSETS_MS[name] for name in NUSCENES_CAMERAS}
CONFIG = SyncConfig()

MIXING_ERROR_MS = CONFIG.tolerance_ms / 2
"""The starts of one sweep then differ by 24 ms, the tolerance; those of two by 26 ms or more."""

SPLITTING_ERROR_MS = 8.0
"""The reference camera then has periods of 34 ms or more, and 0.49 of it is more than 16 ms."""

SHORTEST_LOOP = 10
"""Sweeps, 0.5 s or more: the frames of two rounds of a bag do not meet at one stamp."""

MODEST_DELAY_MS = 80.0
"""With 60 ms of jitter and 43 ms of exposure up to 183 ms, which the deadline, 150 ms, cuts."""

Sweep = tuple[int, int]


class Payload:
    """The sweep that a frame is really of; the test counts those that are held."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep


@dataclass(frozen=True)
class Result:
    """A returned set without its payloads, so that they can be freed."""

    sweeps: frozenset[Sweep]
    cameras: tuple[str, ...]
    missing: tuple[str, ...]
    first_arrival_ns: int

    @property
    def sweep(self) -> Sweep:
        (sweep,) = self.sweeps
        return sweep


@st.composite
def drives(draw, *, error_ms: float, delay_ms: float, max_loops: int = 3) -> list[Arrival]:
    """Frames in order of arrival, with stamp errors, jitter, losses, delays and copies."""
    loops, seed = draw(st.integers(1, max_loops)), draw(st.integers(0, 2**16))
    arrivals = simulate_nuscenes(
        draw(st.integers(1 if loops == 1 else SHORTEST_LOOP, 25)),
        loops=loops,
        arrival_jitter_ms=draw(st.sampled_from([0, 5, 60])),
        loss=draw(st.sampled_from([0, 0.03, 0.3])),
        seed=seed,
    )
    errors_ms = draw(st.sampled_from([[0.0], [-error_ms, error_ms], [-error_ms, 0.0, error_ms]]))
    rng = random.Random(seed)
    arrivals = [with_error(arrival, rng.choice(errors_ms)) for arrival in arrivals]
    changes = st.tuples(
        st.integers(0, 449), st.sampled_from(['lose', 'delay', 'copy']), st.floats(0, delay_ms)
    )
    for index, kind, later_ms in draw(st.lists(changes, max_size=25)):
        change(arrivals, index, kind, later_ms)
    return sorted(arrivals, key=lambda arrival: arrival.arrival_ns)


def with_error(arrival: Arrival, error_ms: float) -> Arrival:
    return replace(arrival, stamp_ns=arrival.stamp_ns + round(error_ms * NS_PER_MS))


def change(arrivals: list[Arrival], index: int, kind: str, later_ms: float) -> None:
    if not arrivals:
        return
    arrival = arrivals.pop(index % len(arrivals))
    later = replace(arrival, arrival_ns=arrival.arrival_ns + round(later_ms * NS_PER_MS))
    arrivals += {'lose': [], 'delay': [later], 'copy': [arrival, later]}[kind]


def slowed(arrivals: list[Arrival], rate: float) -> list[Arrival]:
    return [replace(a, arrival_ns=round(a.arrival_ns / rate)) for a in arrivals]


class Run:
    """A synchroniser, its clock and the payloads that it holds."""

    def __init__(self, *, policy: str = 'drop_view', rate: float = 1.0, min_views: int = 1):
        self.now_ns = 0
        self.held: weakref.WeakSet[Payload] = weakref.WeakSet()
        self.sync = SweepSynchronizer(
            OFFSETS,
            SyncConfig(min_views=min_views),
            missing_camera_policy=policy,
            clock_ns=lambda: self.now_ns,
        )
        self.sync.set_clock_rate(rate)

    def step(self, arrival: Arrival) -> list[Result]:
        self.now_ns = arrival.arrival_ns
        payload = Payload(arrival.sweep)
        self.held.add(payload)
        first = self.sync.push(arrival.camera, arrival.stamp_ns, payload)
        return [result_of(s) for s in ([first] if first else []) + self.sync.poll()]

    def finish(self) -> list[Result]:
        self.now_ns += 10**15
        return [result_of(frame_set) for frame_set in self.sync.poll()]

    def play(self, arrivals: list[Arrival]) -> list[Result]:
        return [r for arrival in arrivals for r in self.step(arrival)] + self.finish()


def result_of(frame_set: FrameSet) -> Result:
    assert all(frame.camera == name for name, frame in frame_set.frames.items())
    return Result(
        frozenset(frame.payload.sweep for frame in frame_set.frames.values()),
        tuple(frame_set.frames),
        frame_set.missing,
        frame_set.first_arrival_ns,
    )


def first_arrivals(arrivals: list[Arrival]) -> dict[Sweep, dict[str, int]]:
    """Return sweep to camera to the arrival of its first copy; `arrivals` are in order."""
    times: dict[Sweep, dict[str, int]] = {}
    for arrival in arrivals:
        times.setdefault(arrival.sweep, {}).setdefault(arrival.camera, arrival.arrival_ns)
    return times


def deadline_ns(rate: float) -> float:
    return CONFIG.deadline_ms * NS_PER_MS / rate


def whole_in_time(arrivals: list[Arrival], rate: float) -> list[Sweep]:
    """Return the sweeps whose frames all arrived within the deadline, sorted."""
    return sorted(
        sweep
        for sweep, times in first_arrivals(arrivals).items()
        if len(times) == len(OFFSETS)
        and max(times.values()) - min(times.values()) < deadline_ns(rate)
    )


policies = st.sampled_from(['skip', 'drop_view'])
rates = st.floats(0.05, 1.0) | st.just(1.0)
many = settings(derandomize=True, deadline=None, max_examples=400)

in_order = drives(error_ms=MIXING_ERROR_MS, delay_ms=MODEST_DELAY_MS)
wild = drives(error_ms=MIXING_ERROR_MS, delay_ms=3000.0, max_loops=1)
exact_enough = drives(error_ms=SPLITTING_ERROR_MS, delay_ms=MODEST_DELAY_MS)


@many
@given(in_order | wild, policies, rates)
def test_no_set_mixes_two_sweeps_and_each_camera_has_its_own_place(arrivals, policy, rate):
    for result in Run(policy=policy, rate=rate).play(slowed(arrivals, rate)):
        assert len(result.sweeps) == 1
        assert result.cameras == tuple(c for c in OFFSETS if c in result.cameras)
        assert result.missing == tuple(c for c in OFFSETS if c not in result.cameras)


@many
@given(exact_enough, policies, rates)
def test_every_sweep_that_is_whole_within_the_deadline_is_returned_once(arrivals, policy, rate):
    slow = slowed(arrivals, rate)
    results = Run(policy=policy, rate=rate).play(slow)
    assert sorted(r.sweep for r in results if not r.missing) == whole_in_time(slow, rate)


@many
@given(in_order | wild, policies, st.integers(1, 6))
def test_every_frame_is_in_one_counter_at_any_time(arrivals, policy, min_views):
    run = Run(policy=policy, min_views=min_views)
    results = []
    for number, arrival in enumerate(arrivals, 1):
        results += run.step(arrival)
        counters = run.sync.counters
        num_missing = sum(counters.missing.values())
        num_closed = counters.complete + counters.partial + counters.dropped
        in_closed = num_closed * len(OFFSETS) - num_missing
        assert sum(counters.received.values()) == number
        assert number == in_closed + counters.late + counters.duplicate + len(run.held)
    results += run.finish()
    assert not run.held
    assert run.sync.counters.complete == sum(not r.missing for r in results)
    assert run.sync.counters.partial == sum(bool(r.missing) for r in results)


@many
@given(wild, policies, st.floats(0.01, 0.1))
def test_the_frames_of_at_most_the_allowed_sweeps_are_held(arrivals, policy, rate):
    run = Run(policy=policy, rate=rate)  # slower than the frames come, so that no deadline passes
    most = 0
    for arrival in arrivals:
        run.step(arrival)
        most = max(most, len({payload.sweep for payload in run.held}))
        assert len(run.held) <= MAX_OPEN_SWEEPS * len(OFFSETS)
    assert most <= MAX_OPEN_SWEEPS
    assert run.finish() == [] or policy == 'drop_view'


@many
@given(in_order | wild, policies, st.sampled_from([0.5, 0.25, 0.0625]))
def test_a_replay_at_any_rate_gives_the_sets_of_the_drive(arrivals, policy, rate):
    drive, replay = Run(policy=policy), Run(policy=policy, rate=rate)
    results = drive.play(arrivals)
    times_faster = [
        replace(result, first_arrival_ns=round(result.first_arrival_ns * rate))
        for result in replay.play(slowed(arrivals, rate))
    ]
    assert times_faster == results
    assert replay.sync.counters == drive.sync.counters


@many
@given(exact_enough, rates, st.integers(1, 6))
def test_a_partial_set_misses_only_frames_that_did_not_come_in_time(arrivals, rate, min_views):
    slow = slowed(arrivals, rate)
    for result in Run(rate=rate, min_views=min_views).play(slow):
        times = first_arrivals(slow)[result.sweep]
        end_ns = result.first_arrival_ns + deadline_ns(rate)
        in_time = tuple(c for c in OFFSETS if times.get(c, end_ns) < end_ns)
        assert result.cameras == in_time
        assert result.missing == tuple(c for c in OFFSETS if c not in in_time)
        assert len(in_time) >= min_views


@many
@given(in_order | wild)
def test_the_policy_skip_returns_the_complete_sets_of_drop_view_and_no_other(arrivals):
    skip, drop_view = (Run(policy=p).play(arrivals) for p in ('skip', 'drop_view'))
    assert skip == [result for result in drop_view if not result.missing]
