from dataclasses import replace
import random
import tracemalloc

from nuscenes_timing import Arrival, simulate_nuscenes, START_NS, whole_sweeps
from p2d_node.camera_sync import MAX_OPEN_SWEEPS, SweepSynchronizer
from p2d_node.config import NUSCENES_EXPOSURE_OFFSETS_MS, SyncConfig
from p2d_node.errors import ConfigError
from p2d_node.records import FrameSet, NUSCENES_CAMERAS
from p2d_node.units import NS_PER_MS
import pytest

OFFSETS = {name: NUSCENES_EXPOSURE_OFFSETS_MS[name] for name in NUSCENES_CAMERAS}
TRIGGERED = dict.fromkeys(NUSCENES_CAMERAS, 0.0)


class Clock:
    """A steady clock that the test moves."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def play(sync: SweepSynchronizer, clock: Clock, arrivals: list[Arrival]) -> list[FrameSet]:
    sets = []
    for arrival in arrivals:
        clock.now_ns = arrival.arrival_ns
        frame_set = sync.push(arrival.camera, arrival.stamp_ns, arrival.sweep)
        if frame_set is not None:
            sets.append(frame_set)
        sets += sync.poll()
    clock.now_ns += 10_000 * NS_PER_MS
    return sets + sync.poll()


def make(offsets=OFFSETS, **options) -> tuple[SweepSynchronizer, Clock]:
    clock = Clock()
    policy = options.pop('missing_camera_policy', 'skip')
    sync = SweepSynchronizer(
        offsets, SyncConfig(**options), missing_camera_policy=policy, clock_ns=clock
    )
    return sync, clock


def sweeps_in(frame_set: FrameSet) -> set[tuple[int, int]]:
    return {frame.payload for frame in frame_set.frames.values()}


@pytest.mark.parametrize('policy', ['skip', 'drop_view'])
@pytest.mark.parametrize('late_stamps', [True, False])
@pytest.mark.parametrize('seed', range(3))
def test_hard_nuscenes_timing_gives_every_whole_sweep_once_and_mixes_none(
    policy, late_stamps, seed
):
    arrivals = simulate_nuscenes(
        2000,
        loops=3,
        arrival_jitter_ms=60,
        loss=0.05,
        back_left_late_ms=20,
        late_stamps=late_stamps,
        seed=seed,
    )
    sync, clock = make(missing_camera_policy=policy)
    sets = play(sync, clock, arrivals)
    assert [s for s in sets if len(sweeps_in(s)) != 1] == []
    complete = [next(iter(sweeps_in(s))) for s in sets if not s.missing]
    assert len(complete) == len(set(complete))
    assert set(complete) == whole_sweeps(arrivals, sync.config.deadline_ms)
    assert sync.counters.reset == 2
    assert sync.counters.complete == len(complete)
    assert (sync.counters.partial > 0) == (policy == 'drop_view')


def test_perfect_timing_gives_sets_in_order_with_reference_stamp_and_camera_order():
    arrivals = simulate_nuscenes(50)
    sync, clock = make()
    sets = play(sync, clock, arrivals)
    assert len(sets) == 50
    assert [s.order for s in sets] == sorted(s.order for s in sets)
    assert all(tuple(s.frames) == NUSCENES_CAMERAS for s in sets)
    assert all(s.stamp_ns == s.frames['CAM_FRONT'].stamp_ns for s in sets)
    wait_ms = (sets[0].closed_ns - sets[0].first_arrival_ns) / NS_PER_MS
    assert wait_ms == pytest.approx(42.6)


def test_a_dead_camera_drops_sets_under_skip_and_gives_five_views_under_drop_view():
    arrivals = [a for a in simulate_nuscenes(40) if a.camera != 'CAM_BACK']
    sync, clock = make()
    assert play(sync, clock, arrivals) == []
    assert sync.counters.dropped == 40
    assert sync.counters.missing['CAM_BACK'] == 40

    sync, clock = make(missing_camera_policy='drop_view')
    sets = play(sync, clock, arrivals)
    assert len(sets) == 40
    assert all(s.missing == ('CAM_BACK',) and len(s.frames) == 5 for s in sets)


def test_a_set_without_its_reference_camera_carries_the_time_that_camera_would_have_had():
    arrivals = simulate_nuscenes(5)
    expected = [a.stamp_ns for a in arrivals if a.camera == 'CAM_FRONT']
    sync, clock = make(missing_camera_policy='drop_view')
    sets = play(sync, clock, [a for a in arrivals if a.camera != 'CAM_FRONT'])
    assert [s.stamp_ns for s in sets] == expected


def test_too_few_views_are_not_handed_out_under_drop_view():
    arrivals = [a for a in simulate_nuscenes(5) if a.camera in NUSCENES_CAMERAS[:2]]
    sync, clock = make(missing_camera_policy='drop_view', min_views=3)
    assert play(sync, clock, arrivals) == []
    assert sync.counters.dropped == 5


def test_a_frame_after_its_sweep_was_closed_is_late_and_a_second_copy_is_duplicate():
    sync, clock = make(TRIGGERED, deadline_ms=100.0)
    for camera in NUSCENES_CAMERAS[:5]:
        sync.push(camera, START_NS, None)
    sync.push('CAM_FRONT', START_NS, None)
    assert sync.counters.duplicate == 1
    clock.now_ns = 101 * NS_PER_MS
    assert sync.push('CAM_BACK_RIGHT', START_NS, None) is None
    assert (sync.counters.late, sync.counters.dropped) == (1, 1)
    sync.push('CAM_FRONT', START_NS, None)
    assert sync.counters.duplicate == 2


def test_push_alone_returns_every_set_even_when_two_are_ready():
    sync, clock = make(TRIGGERED, missing_camera_policy='drop_view', deadline_ms=100.0)
    for camera in NUSCENES_CAMERAS[:5]:
        sync.push(camera, START_NS, None)
    clock.now_ns = 90 * NS_PER_MS
    later_ns = START_NS + 90 * NS_PER_MS
    for camera in NUSCENES_CAMERAS[:5]:
        sync.push(camera, later_ns, None)
    clock.now_ns = 120 * NS_PER_MS
    first = sync.push('CAM_BACK_RIGHT', later_ns, None)
    assert first is not None
    assert first.stamp_ns == START_NS
    assert [s.stamp_ns for s in sync.poll()] == [later_ns]


def test_frames_out_of_order_within_a_camera_still_find_their_sweeps():
    first, second = START_NS, START_NS + 50 * NS_PER_MS
    sync, _ = make(TRIGGERED)
    sets = [
        sync.push(camera, stamp, None) for stamp in (second, first) for camera in NUSCENES_CAMERAS
    ]
    assert [s.stamp_ns for s in sets if s] == [second, first]
    assert sync.counters.reset == 0


def test_a_backward_jump_starts_a_new_epoch_that_orders_after_the_old_one():
    arrivals = simulate_nuscenes(30, loops=2)
    sync, clock = make()
    sets = play(sync, clock, arrivals)
    assert len(sets) == 60
    assert [s.order for s in sets] == sorted(s.order for s in sets)
    assert [s.epoch for s in sets] == [0] * 30 + [1] * 30


def test_too_wide_a_tolerance_is_held_below_half_the_sweep_period():
    sync, clock = make(TRIGGERED, tolerance_ms=200.0)
    sets = []
    for sweep in range(50):
        stamp_ns = START_NS + sweep * 33 * NS_PER_MS
        for index, camera in enumerate(NUSCENES_CAMERAS):
            if sweep > 2 and camera == NUSCENES_CAMERAS[sweep % 6]:
                continue  # a lost frame tempts a wide tolerance to borrow the next sweep's
            clock.now_ns = (sweep * 33 + index) * NS_PER_MS
            frame_set = sync.push(camera, stamp_ns, sweep)
            sets += [frame_set] if frame_set else []
    assert sync.tolerance_ns < 33 * NS_PER_MS / 2
    assert all(len(sweeps_in(s)) == 1 for s in sets)


@pytest.mark.parametrize('offsets', [NUSCENES_EXPOSURE_OFFSETS_MS, TRIGGERED])
def test_auto_learns_the_exposure_offsets_of_a_rig(offsets):
    arrivals = simulate_nuscenes(200, arrival_jitter_ms=5, offsets_ms=offsets, loss=0.02)
    sync, clock = make(TRIGGERED, exposure_offsets='auto')
    sets = play(sync, clock, arrivals)
    assert not sync.learning
    for name, offset in offsets.items():
        learned_ms = sync.offsets_ns[name] / NS_PER_MS
        assert learned_ms == pytest.approx(offset - offsets['CAM_FRONT'], abs=0.1)
    assert all(len(sweeps_in(s)) == 1 for s in sets)
    late_whole = {s for s in whole_sweeps(arrivals, 150) if s[1] > 40}
    assert late_whole <= {next(iter(sweeps_in(s))) for s in sets}


def test_auto_goes_on_without_a_camera_that_never_comes():
    arrivals = [a for a in simulate_nuscenes(300) if a.camera != 'CAM_BACK']
    sync, clock = make(TRIGGERED, exposure_offsets='auto', missing_camera_policy='drop_view')
    sets = play(sync, clock, arrivals)
    assert not sync.learning
    # Learning may end in the middle of a sweep, whose first frames are gone.
    assert len(sets[1:]) > 100
    assert all(s.missing == ('CAM_BACK',) for s in sets[1:])


def test_stamp_zero_falls_back_to_arrival_and_says_so():
    clock = Clock()
    sync = SweepSynchronizer(TRIGGERED, clock_ns=clock, stamp_clock_ns=lambda: clock.now_ns + 7)
    sets = []
    for sweep in range(10):
        for index, camera in enumerate(NUSCENES_CAMERAS):
            clock.now_ns = (sweep * 83 + index) * NS_PER_MS
            frame_set = sync.push(camera, 0, sweep)
            sets += [frame_set] if frame_set else []
    assert len(sets) == 10
    assert all(len(sweeps_in(s)) == 1 for s in sets)
    assert sum(sync.counters.unstamped.values()) == 60


def test_a_hold_up_of_the_process_drops_nothing_that_had_arrived_in_time():
    sync, clock = make(TRIGGERED, deadline_ms=100.0)
    sync.push('CAM_FRONT', START_NS, None, arrival_ns=0)
    clock.now_ns = 400 * NS_PER_MS  # held up; the other frames came after 20 ms
    assert sync.poll(delay_ns=380 * NS_PER_MS) == []
    sets = [
        sync.push(camera, START_NS, None, arrival_ns=20 * NS_PER_MS)
        for camera in NUSCENES_CAMERAS[1:]
    ]
    assert sets[-1] is not None
    assert sets[-1].closed_ns == clock.now_ns
    assert sync.counters.dropped == 0


def test_memory_stays_bounded_under_a_stream_that_never_completes():
    sync, clock = make(deadline_ms=10_000.0)
    payload_bytes = 100_000

    def push_many(start: int, count: int) -> None:
        for i in range(start, start + count):
            clock.now_ns = i * 1000
            sync.push('CAM_FRONT', START_NS + i * 100 * NS_PER_MS, bytes(payload_bytes))

    tracemalloc.start()
    push_many(1, 500)
    used, _ = tracemalloc.get_traced_memory()
    push_many(501, 500)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (MAX_OPEN_SWEEPS + 3) * payload_bytes
    assert after <= used + payload_bytes


def test_an_unknown_camera_and_an_unknown_reference_are_refused():
    sync, _ = make()
    with pytest.raises(ConfigError, match=r"'CAM_TOP', allowed: CAM_FRONT, "):
        sync.push('CAM_TOP', START_NS, None)
    with pytest.raises(ConfigError, match="reference_camera: got 'CAM_TOP'"):
        make(reference_camera='CAM_TOP')


def push_sweep(sync, clock, start_ms: float, period_ms: int) -> list[FrameSet]:
    """Push one sweep of the reference drive; returns the sets that it completes."""
    clock.now_ns += period_ms * NS_PER_MS
    sets = []
    for camera, offset_ms in OFFSETS.items():
        stamp_ns = START_NS + round((start_ms + offset_ms) * NS_PER_MS)
        frame_set = sync.push(camera, stamp_ns, start_ms)
        sets += [frame_set] if frame_set else []
    return sets


def test_a_bag_shorter_than_the_reset_threshold_that_loops_is_answered_again():
    sync, clock = make()
    sets = [
        frame_set
        for _ in range(12)  # 0.5 s of drive, again and again
        for sweep in range(6)
        for frame_set in push_sweep(sync, clock, sweep * 83.0, 83)
    ]
    orders = [frame_set.order for frame_set in sets]
    newer = [order for n, order in enumerate(orders) if order > max(orders[:n], default=(-1, 0))]
    assert sync.counters.reset >= 2
    assert len(newer) >= 6 + 2 * 3


def test_a_stray_frame_of_the_reference_camera_does_not_lower_the_tolerance():
    sync, clock = make()
    for sweep in range(40):
        jitter_ms = (sweep * 7) % 9 - 4
        push_sweep(sync, clock, sweep * 125.0 + jitter_ms, 125)
        if sweep == 20:
            stamp_ns = START_NS + round((sweep * 125.0 + OFFSETS['CAM_FRONT'] + 4) * NS_PER_MS)
            sync.push('CAM_FRONT', stamp_ns, 'stray')
    assert sync.counters.complete == 40
    assert sync.tolerance_ns == 24 * NS_PER_MS


@pytest.mark.attack(
    'A peer sends a few frames on the topic of the reference camera, 2 ms apart',
    'the tolerance stays; after a long burst it is back within ten frames of the camera',
)
@pytest.mark.parametrize(('num_strays', 'first_whole'), [(4, 21), (400, 31)])
def test_strays_of_the_reference_camera_do_not_outlast_their_end(num_strays, first_whole):
    sync, clock = make()
    whole = []
    for sweep in range(60):
        jitter_ms = (sweep * 7) % 7 - 3
        whole += push_sweep(sync, clock, sweep * 83.0 + jitter_ms, 83)
        if sweep == 20:
            stamp_ns = START_NS + round((sweep * 83.0 + OFFSETS['CAM_FRONT'] + 10) * NS_PER_MS)
            for number in range(num_strays):
                sync.push('CAM_FRONT', stamp_ns + number * 2_100_000, 'stray')
        if sweep >= first_whole:
            assert sync.tolerance_ns == 24 * NS_PER_MS
    assert len(whole) >= 50


@pytest.mark.attack(
    'A peer sends old frames on the topic of the reference camera, so that the period seems long',
    'the tolerance stays below half of the period, and no set mixes two sweeps',
)
@pytest.mark.parametrize('strays_per_sweep', [0.5, 2])
def test_old_frames_of_the_reference_camera_do_not_raise_the_tolerance(strays_per_sweep):
    sync, clock = make(TRIGGERED)
    period_ms = 33
    sets = []
    for sweep in range(200):
        start_ms = sweep * period_ms
        strays = range(int(sweep * strays_per_sweep), int((sweep + 1) * strays_per_sweep))
        stamps_ms = [('CAM_FRONT', start_ms - 400.0 * (stray % 7 + 1)) for stray in strays]
        stamps_ms.append(('CAM_BACK', start_ms - period_ms / 2))
        for camera, stamp_ms in stamps_ms if sweep >= 20 else ():
            stamp_ns = START_NS + round(stamp_ms * NS_PER_MS)
            sets += filter(None, [sync.push(camera, stamp_ns, -1.0)])
        for camera in OFFSETS:
            late_ms = period_ms if camera == 'CAM_FRONT_LEFT' else 0.0
            stamp_ns = START_NS + round((start_ms - late_ms) * NS_PER_MS)
            sets += filter(None, [sync.push(camera, stamp_ns, start_ms - late_ms)])
        clock.now_ns += period_ms * NS_PER_MS
        sets += sync.poll()
    assert sync.tolerance_ns < period_ms / 2 * NS_PER_MS
    assert len(sets) > 20
    assert not [s for s in sets if len(sweeps_in(s) - {-1.0}) > 1]


def restarted_at(arrivals: list[Arrival], camera: str, start_ms: float, shift_ms: float):
    """Return the arrivals with another phase of one camera from `start_ms` on."""
    shift_ns, start_ns = round(shift_ms * NS_PER_MS), start_ms * NS_PER_MS
    changed = [
        replace(a, arrival_ns=a.arrival_ns + shift_ns, stamp_ns=a.stamp_ns + shift_ns)
        if a.camera == camera and a.arrival_ns >= start_ns
        else a
        for a in arrivals
        if not (a.camera == camera and start_ns <= a.arrival_ns < start_ns + 500 * NS_PER_MS)
    ]
    return sorted(changed, key=lambda a: a.arrival_ns)


@pytest.mark.parametrize('camera', ['CAM_BACK', 'CAM_FRONT'])
@pytest.mark.parametrize('shift_ms', [35.0, -30.0])
def test_auto_follows_a_camera_that_restarts_with_another_phase(camera, shift_ms):
    arrivals = simulate_nuscenes(400, arrival_jitter_ms=3, loss=0.01)
    restart_ms = 10_000.0
    sync, clock = make(TRIGGERED, exposure_offsets='auto')
    sets = play(sync, clock, restarted_at(arrivals, camera, restart_ms, shift_ms))
    assert sync.counters.relearned[camera] or camera == 'CAM_FRONT'
    first_ns = arrivals[0].arrival_ns
    recovered = [s for s in sets if s.closed_ns - first_ns > (restart_ms + 3000) * NS_PER_MS]
    expected = {s for s in whole_sweeps(arrivals, 150) if s[1] > (restart_ms + 3000) / 83}
    assert len(recovered) > 0.9 * len(expected)
    assert sync.residual_ns('CAM_BACK') == pytest.approx(0, abs=NS_PER_MS)


@pytest.mark.attack(
    'A peer sends pairs of frames that fit an exposure offset of the sweep before (auto)',
    'once they are over, the smallest offset that explains the frames is learnt again',
)
@pytest.mark.parametrize(('period_ms', 'misled'), [(83.0, True), (250.0, False)])
def test_an_offset_of_another_sweep_does_not_outlast_strays(period_ms, misled):
    sync, clock = make({'CAM_FRONT': 0.0, 'CAM_BACK': 0.0}, exposure_offsets='auto')
    rng = random.Random(0)
    sets = []
    for sweep in range(220):
        frames = [('CAM_FRONT', 0.0, sweep), ('CAM_BACK', 25.0, sweep)]
        if 60 <= sweep < 120:
            phase_ms = rng.uniform(30.0, 60.0)
            frames += [('CAM_FRONT', phase_ms, -1), ('CAM_BACK', phase_ms + 25.0 - period_ms, -1)]
        for camera, offset_ms, payload in frames:
            clock.now_ns = round((sweep * period_ms + max(offset_ms, 26.0)) * NS_PER_MS)
            stamp_ns = START_NS + round((sweep * period_ms + offset_ms) * NS_PER_MS)
            sets += filter(None, [sync.push(camera, stamp_ns, payload)])
            sets += sync.poll()
    # If it was misled, it is right again.
    assert (sync.counters.relearned['CAM_BACK'] >= 2) == misled
    expected = set(range(165, 219))
    assert expected <= {s.frames['CAM_FRONT'].payload for s in sets}
    assert not [s for s in sets if len(sweeps_in(s)) > 1 and sweeps_in(s) & expected]


def regular_arrivals(period_ms: float, late_ms: float = 0.0, strays=range(0)) -> list[Arrival]:
    """Return the frames of 240 sweeps; those of CAM_FRONT begin later, and strays precede some."""
    arrivals = []
    for sweep in range(240):
        for camera, offset_ms in OFFSETS.items():
            taken_ms = sweep * period_ms + offset_ms
            if camera != 'CAM_FRONT' or sweep * period_ms >= late_ms:
                arrivals.append((taken_ms + 3.0, camera, taken_ms, (0, sweep)))
        if sweep in strays:
            taken_ms = sweep * period_ms + OFFSETS['CAM_FRONT']
            arrivals.append((taken_ms + 60.0, 'CAM_FRONT', taken_ms - 20.0, (-1, sweep)))
    return [
        Arrival(
            camera=camera,
            stamp_ns=START_NS + round(taken_ms * NS_PER_MS),
            arrival_ns=round(arrival_ms * NS_PER_MS),
            sweep=number,
        )
        for arrival_ms, camera, taken_ms, number in sorted(arrivals)
    ]


@pytest.mark.parametrize('period_ms', [83.3, 100.0])
@pytest.mark.parametrize('late_ms', [0.0, 150.0, 1000.0])
def test_auto_mixes_no_sweeps_if_the_reference_camera_begins_late(period_ms, late_ms):
    sync, clock = make(TRIGGERED, exposure_offsets='auto')
    sets = play(sync, clock, regular_arrivals(period_ms, late_ms))
    assert len(sets) > 200
    assert all(len(sweeps_in(s)) == 1 for s in sets)
    assert not any(sync.counters.relearned.values())


@pytest.mark.attack(
    'A peer sends as many frames as the reference camera (auto), each 20 ms before one of it',
    'the offsets of the other cameras stay, and no answer is about two sweeps',
)
def test_auto_mixes_no_sweeps_while_strays_of_the_reference_camera_come():
    sync, clock = make(TRIGGERED, exposure_offsets='auto')
    sets = play(sync, clock, regular_arrivals(250 / 3, strays=range(60, 200)))
    assert not any(sync.counters.relearned.values())
    true = [{sweep for loop, sweep in sweeps_in(s) if loop == 0} for s in sets]
    assert all(len(sweeps) == 1 for sweeps in true)


def imperfect_arrivals(period_ms: float, jitter_ms: float, loss: float, seed: int):
    """Return the frames of 300 sweeps at a constant rate, with stamps that jitter, some lost."""
    rng = random.Random(seed)
    offsets_ms = {camera: rng.uniform(0.0, 0.3) * period_ms for camera in TRIGGERED}
    arrivals = []
    for sweep in range(300):
        for camera, offset_ms in offsets_ms.items():
            taken_ms = sweep * period_ms + offset_ms + rng.uniform(-jitter_ms, jitter_ms)
            arrival_ms = sweep * period_ms + offset_ms + jitter_ms + rng.uniform(5.0, 10.0)
            stamp_ns, arrival_ns = (round(ms * NS_PER_MS) for ms in (taken_ms, arrival_ms))
            if rng.random() >= loss:
                arrivals.append(Arrival(arrival_ns, camera, START_NS + stamp_ns, (0, sweep)))
    return sorted(arrivals, key=lambda arrival: arrival.arrival_ns)


@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize(
    ('period_ms', 'jitter_ms', 'loss'),
    [(250 / 3, 5.0, 0.0), (250 / 3, 10.0, 0.02), (250 / 3, 0.0, 0.05), (100 / 3, 3.4, 0.05)],
)
def test_auto_mixes_no_sweeps_whose_stamps_jitter_or_whose_frames_are_lost(
    period_ms, jitter_ms, loss, seed
):
    sync, clock = make(
        TRIGGERED, exposure_offsets='auto', missing_camera_policy='drop_view', min_views=2
    )
    sets = play(sync, clock, imperfect_arrivals(period_ms, jitter_ms, loss, seed))
    assert len(sets) > 250
    assert all(len(sweeps_in(s)) == 1 for s in sets)


def frames_at(period_ms: float, offset_ms: float, payload: float | None = None, begin_ms=0.0):
    """Yield stamp (ms) and payload, by default the begin of the sweep, of a camera for 30 s."""
    for number in range(int((30_000.0 - begin_ms) / period_ms)):
        start_ms = begin_ms + number * period_ms
        yield start_ms + offset_ms, start_ms if payload is None else payload


def play_rates(frames: dict[str, list[tuple[float, float]]]) -> tuple[SweepSynchronizer, list]:
    """Return the sets of cameras with stamps and payloads, all of which take 20 ms to arrive."""
    arrivals = [
        Arrival(round((stamp_ms + 20.0) * NS_PER_MS), camera, round(stamp_ms * NS_PER_MS), payload)
        for camera, pairs in frames.items()
        for stamp_ms, payload in pairs
    ]
    sync, clock = make(dict.fromkeys(frames, 0.0), exposure_offsets='auto')
    return sync, play(sync, clock, sorted(arrivals, key=lambda arrival: arrival.arrival_ns))


@pytest.mark.parametrize(
    'periods_ms',
    [
        {'CAM_FRONT': 200.0, 'CAM_BACK': 100.0, 'CAM_LEFT': 100.0},
        {'CAM_FRONT': 100.0, 'CAM_BACK': 100.0, 'CAM_LEFT': 200.0},
        {'CAM_FRONT': 100.0, 'CAM_BACK': 25.0, 'CAM_LEFT': 100.0},
    ],
)
def test_auto_keeps_the_offsets_of_cameras_of_other_rates(periods_ms):
    offsets_ms = {'CAM_FRONT': 0.0, 'CAM_BACK': 7.0, 'CAM_LEFT': 9.0}
    frames = {name: list(frames_at(p, offsets_ms[name])) for name, p in periods_ms.items()}
    sync, sets = play_rates(frames)
    assert not any(sync.counters.relearned.values())
    assert len(sets) > 120
    assert all(len(sweeps_in(s)) == 1 for s in sets)


@pytest.mark.attack(
    'A peer sends about as many frames as a camera on the topic of that camera alone (auto)',
    'its offset stays, and no answer is about two sweeps',
)
@pytest.mark.parametrize('period_ms', [90.0, 103.0, 130.0])
def test_auto_keeps_an_offset_while_strays_of_that_camera_come(period_ms):
    frames = {name: list(frames_at(100.0, 5.0 * i)) for i, name in enumerate(TRIGGERED)}
    frames['CAM_BACK'] += frames_at(period_ms, 3.0, -1.0, begin_ms=8_000.0)
    sync, sets = play_rates(frames)
    assert not any(sync.counters.relearned.values())
    assert all(len(sweeps_in(s) - {-1.0}) == 1 for s in sets)


def test_auto_changes_no_offset_while_the_cameras_do_not_change():
    arrivals = simulate_nuscenes(1000, arrival_jitter_ms=5, loss=0.05)
    sync, clock = make(TRIGGERED, exposure_offsets='auto')
    play(sync, clock, arrivals)
    assert not any(sync.counters.relearned.values())


def test_the_residual_of_a_camera_is_what_its_offset_does_not_explain():
    sync, clock = make({**OFFSETS, 'CAM_BACK': OFFSETS['CAM_BACK'] - 9.0})
    assert sync.residual_ns('CAM_BACK') is None
    play(sync, clock, simulate_nuscenes(30))
    assert sync.residual_ns('CAM_BACK') == pytest.approx(9 * NS_PER_MS, abs=1)
    assert sync.residual_ns('CAM_BACK_LEFT') == pytest.approx(0, abs=1)


@pytest.mark.parametrize('rate', [0.05, 0.25, 1.0, 4.0])
def test_a_slow_replay_is_waited_for_as_the_clock_of_the_cameras_runs(rate):
    slow = [
        replace(arrival, arrival_ns=round(arrival.arrival_ns / rate))
        for arrival in simulate_nuscenes(60)
    ]
    sync, clock = make(missing_camera_policy='drop_view')
    sync.set_clock_rate(rate)
    sets = play(sync, clock, slow)
    assert len(sets) == 60
    assert sync.counters.complete == 60
    late = [a for a in slow if not (a.camera == 'CAM_BACK' and a.sweep == (0, 10))]
    sync, clock = make(missing_camera_policy='drop_view')
    sync.set_clock_rate(rate)
    partial = [s for s in play(sync, clock, late) if s.missing]
    assert len(partial) == 1
    waited_ms = (partial[0].closed_ns - partial[0].first_arrival_ns) / NS_PER_MS
    assert 150 / min(1.0, rate) <= waited_ms < 300 / min(1.0, rate)
