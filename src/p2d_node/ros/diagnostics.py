"""Describes pipeline, synchroniser and cameras as `diagnostic_msgs` statuses (REP-107)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import statistics
import time

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from p2d_node.camera_sync import SweepSynchronizer, SyncCounters
from p2d_node.config import DriveConfig
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import PassCounts
from p2d_node.ros.camera_subscription import CameraSubscription, UNREADABLE_PUBLISHER
from p2d_node.ros.sweep_age import SweepAge
from p2d_node.ros.sweep_worker import SweepWorker
from p2d_node.ros.worker_state import WorkerState
from p2d_node.units import NS_PER_MS, NS_PER_S
from rclpy.node import Node

Status = tuple[bytes, str, dict[str, object]]
"""Level of `DiagnosticStatus`, one line for the user, and figures by name."""

Problem = tuple[bytes, str] | None
"""Level and message; None if there is none."""

MIN_RATE_SHARE = 0.8
"""A camera below this share of its expected rate is reported."""

SILENT_S = 2.0
"""A camera without a frame for this long is reported as silent."""

FAILURES_UNTIL_ERROR = 5
"""Failed sweeps in a row at which the warning becomes an error."""

MAX_RESETS = 2
"""Backward jumps of time between two reports at which the clocks of the cameras differ."""

NOT_NEWER_UNTIL_ERROR = 5
"""Sweeps in a row that are not newer than the one before at which that is an error."""

SHORT_CLIPS_UNTIL_WARNING = 17
"""More sweeps in a row than the longest clip needs to become full."""

MAX_RESIDUAL_SHARE = 1 / 3
"""Residual of a camera, as a share of the tolerance, at which it is reported."""

LOW_TOLERANCE_SHARE = 0.5
"""Tolerance in use, as a share of the configured one, that is named if no sweep is complete."""

MAX_NAMES_SHOWN = 4

SAME_TIME_NS = NS_PER_S // 3

MAX_CLOCK_DIFFERENCE_S = 5.0
"""Cameras whose stamps differ by more, frame arrivals considered, have different clocks."""

MIN_CAMERAS_FOR_MAJORITY = 3

STALLED_S = 10.0
"""A sweep that is processed for longer than this is reported."""

FIX_LOST_FRAGMENTS = (
    'large best-effort images lose fragments: start the publisher with '
    'FASTDDS_DEFAULT_PROFILES_FILE set to config/fastdds.xml of p2d_node (or Cyclone DDS with '
    'CYCLONEDDS_URI set to config/cyclonedds.xml), publish reliable, or publish compressed'
)
FIX_SLOW_CAMERA = 'check the camera driver, its frame rate and the network load'


def make_status(
    name: str, level: bytes, message: str, values: dict[str, object], hardware_id: str
) -> DiagnosticStatus:
    """Return one status.

    Args:
        name: Name of the component.
        level: A level of `DiagnosticStatus`.
        message: One line for the user.
        values: Figures, published as text.
        hardware_id: Name of the computer.
    """
    return DiagnosticStatus(
        name=name,
        level=level,
        message=message,
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


def camera_status(
    camera: CameraSubscription,
    expected_hz: float,
    clock_rate: float,
    *,
    num_broken: int,
    damage: str,
) -> Status:
    """Return level, message and values of one camera.

    Args:
        camera: The subscription.
        expected_hz: Its expected frame rate; 0.0 if unknown.
        clock_rate: Seconds of the cameras' clock per second of the steady clock.
        num_broken: Number of its frames that were refused or could not be decoded.
        damage: What was wrong with such a frame since the previous report; empty if there was
            none.
    """
    rate_hz, publishers = camera.rate_hz(), camera.publisher_names
    values: dict[str, object] = {
        'topic': camera.topic,
        'transport': camera.config.transport,
        'reliability': 'reliable' if camera.reliable else 'best-effort',
        'publishers': len(publishers),
        'frames received': camera.num_received,
        'broken frames': num_broken,
        'rate (Hz)': f'{rate_hz:.1f}',
        'expected rate (Hz)': f'{expected_hz:.1f}' if expected_hz else 'unknown',
    }
    if remapped_from := camera.remapped_from:
        values['remapped from'] = remapped_from
    level, message = (
        _publisher_problem(camera, publishers)
        or _frame_problem(camera, rate_hz, expected_hz, clock_rate, damage)
        or (DiagnosticStatus.OK, f'{rate_hz:.1f} Hz')
    )
    return level, message, values


def _publisher_problem(camera: CameraSubscription, publishers: Sequence[str]) -> Problem:
    """Return level and message if there is not one publisher of the subscribed type."""
    topic = camera.topic
    if camera.has_unreadable_publisher:
        return DiagnosticStatus.WARN, f'{topic}: {UNREADABLE_PUBLISHER}'
    if not publishers:
        message = f'nobody publishes {topic}; check cameras.{camera.name}.topic'
        return DiagnosticStatus.ERROR, message
    if published_type := camera.unexpected_type():
        message = (
            f'{topic} is published as {published_type}, but transport is '
            f'{camera.config.transport}; set cameras.{camera.name}.transport'
        )
        return DiagnosticStatus.ERROR, message
    if len(publishers) > 1:
        message = (
            f'{topic} has {len(publishers)} publishers, allowed: one, the camera driver; stop one '
            f'of {", ".join(publishers[:MAX_NAMES_SHOWN])}'
        )
        return DiagnosticStatus.WARN, message
    return None


def _frame_problem(
    camera: CameraSubscription, rate_hz: float, expected_hz: float, clock_rate: float, damage: str
) -> Problem:
    """Return level and message if frames are missing, broken or too rare."""
    silent_s = _seconds_since(camera.last_arrival_ns)
    if silent_s is None:
        return DiagnosticStatus.WARN, f'no frame yet on {camera.topic}'
    if silent_s > _longest_gap_s(expected_hz, clock_rate):
        return DiagnosticStatus.ERROR, f'no frame for {silent_s:.0f} s'
    if damage:
        return DiagnosticStatus.ERROR, f'a frame cannot be used: {damage}'
    if expected_hz and 0 < rate_hz < MIN_RATE_SHARE * expected_hz:
        fix = FIX_SLOW_CAMERA if camera.reliable else FIX_LOST_FRAGMENTS
        message = f'{rate_hz:.1f} Hz, below its rate of {expected_hz:.1f} Hz: {fix}'
        return DiagnosticStatus.WARN, message
    return None


def _longest_gap_s(expected_hz: float, clock_rate: float) -> float:
    """Return the longest time, in s, without a frame of a source that is not silent.

    A slow source, such as a bag of keyframes at 2 Hz, is not silent between two frames, nor is a
    bag that is played slowly.
    """
    return max(SILENT_S, 2.0 / expected_hz if expected_hz else 0.0) / min(1.0, clock_rate)


def common_silence(cameras: Sequence[CameraSubscription], clock_rate: float) -> str:
    """Return a message if no camera sends frames, else an empty text."""
    expected_hz = max(expected_rates(cameras).values(), default=0.0)
    silent_s = [_seconds_since(camera.last_arrival_ns) for camera in cameras]
    times_s = [seconds for seconds in silent_s if seconds is not None]
    if not times_s:
        return 'no camera has sent a frame yet; check the topics and the camera drivers'
    if min(times_s) > _longest_gap_s(expected_hz, clock_rate):
        return f'no camera has sent a frame for {min(times_s):.0f} s; check the camera drivers'
    return ''


def expected_rates(cameras: Sequence[CameraSubscription]) -> dict[str, float]:
    """Return camera to expected rate in Hz: the configured one, or that of the fastest camera."""
    fastest_hz = max((camera.rate_hz() for camera in cameras), default=0.0)
    return {camera.name: camera.config.rate_hz or fastest_hz for camera in cameras}


def odd_clocks(cameras: Sequence[CameraSubscription]) -> dict[str, float]:
    """Return camera to seconds that its stamps are ahead of those of most others, if many."""
    newest_ns = max((camera.last_arrival_ns or 0 for camera in cameras), default=0)
    lead_s = {
        camera.name: lead_ns / NS_PER_S
        for camera in cameras
        # The stamps of a bag do not advance as the steady clock does: only frames of one time.
        if newest_ns - (camera.last_arrival_ns or 0) < SAME_TIME_NS
        and (lead_ns := camera.stamp_lead_ns) is not None
    }
    if len(lead_s) < MIN_CAMERAS_FOR_MAJORITY:
        return {}
    middle_s = statistics.median(lead_s.values())
    odd_s = {name: lead - middle_s for name, lead in lead_s.items()}
    return {name: lead for name, lead in odd_s.items() if abs(lead) > MAX_CLOCK_DIFFERENCE_S}


def sync_status(
    sync: SweepSynchronizer, previous: SyncCounters, silence: str, odd: Mapping[str, float]
) -> Status:
    """Return level, message and values of the synchroniser.

    Args:
        sync: The synchroniser.
        previous: Its counters at the previous report.
        silence: From `common_silence`.
        odd: From `odd_clocks`.
    """
    counters = sync.counters
    values: dict[str, object] = {
        name: getattr(counters, name)
        for name in ('complete', 'partial', 'dropped', 'late', 'duplicate', 'reset')
    }
    values['unstamped'] = sum(counters.unstamped.values())
    values |= {f'missing {name}': count for name, count in counters.missing.items()}
    residuals_ms = {
        name: residual_ns / NS_PER_MS
        for name in sync.cameras
        if (residual_ns := sync.residual_ns(name)) is not None
    }
    values |= {f'residual {name} (ms)': f'{value:.1f}' for name, value in residuals_ms.items()}
    values |= {f'relearned {name}': n for name, n in counters.relearned.items() if n}
    values['tolerance (ms)'] = f'{sync.tolerance_ns / NS_PER_MS:.1f}'
    values['policy'] = sync.missing_camera_policy
    if silence:
        return DiagnosticStatus.ERROR, silence, values
    if sync.learning:
        return DiagnosticStatus.WARN, 'learning the exposure offsets', values
    answerable = counters.complete + counters.partial - previous.complete - previous.partial
    reason = _stamp_problem(counters, previous, odd)
    if counters.dropped > previous.dropped and not answerable:
        reason = reason or _missing_problem(sync, counters, previous) + _tolerance_problem(sync)
        return DiagnosticStatus.ERROR, f'no complete sweep; {reason}', values
    reason = reason or _residual_problem(residuals_ms, sync.tolerance_ns / NS_PER_MS)
    if reason:
        return DiagnosticStatus.WARN, reason, values
    return DiagnosticStatus.OK, f'{counters.complete} complete sweeps', values


def _residual_problem(residuals_ms: Mapping[str, float], tolerance_ms: float) -> str:
    """Return which camera's stamps are far from its exposure offset; empty if none are."""
    worst = max(residuals_ms, key=lambda name: abs(residuals_ms[name]), default=None)
    if worst is None or abs(residuals_ms[worst]) <= MAX_RESIDUAL_SHARE * tolerance_ms:
        return ''
    return (
        f'{worst}: its stamps are {residuals_ms[worst]:+.1f} ms off its exposure offset, allowed: '
        f'{MAX_RESIDUAL_SHARE * tolerance_ms:.1f}; check its clock, set cameras.{worst}.'
        'exposure_offset_ms, or set sync.exposure_offsets to auto'
    )


def _stamp_problem(
    counters: SyncCounters, previous: SyncCounters, odd: Mapping[str, float]
) -> str:
    """Return what is wrong with the stamps since the previous report; empty if nothing is."""
    unstamped = [
        n for n, count in counters.unstamped.items() if count > previous.unstamped.get(n, 0)
    ]
    if unstamped:
        return (
            f'stamps are 0, so arrival times are used, of {", ".join(unstamped)}; stamp the '
            'images at capture'
        )
    if odd:
        names = ', '.join(f'{name} ({lead:+.0f} s)' for name, lead in odd.items())
        return (
            f'the cameras have stamps of different clocks: {names} differ from the others; stamp '
            'them with one clock'
        )
    if counters.reset >= previous.reset + MAX_RESETS:
        return (
            'time jumps back again and again: the cameras have stamps of different clocks; '
            'stamp them with one clock'
        )
    return ''


def _tolerance_problem(sync: SweepSynchronizer) -> str:
    """Return why frames of one sweep may no longer fit together; empty if nothing is unusual."""
    tolerance_ms = sync.tolerance_ns / NS_PER_MS
    if tolerance_ms > LOW_TOLERANCE_SHARE * sync.config.tolerance_ms:
        return ''
    return (
        f'; frames of {sync.reference_camera} come so close together that the tolerance is '
        f'{tolerance_ms:.1f} ms; check that its topic has one publisher'
    )


def _missing_problem(
    sync: SweepSynchronizer, counters: SyncCounters, previous: SyncCounters
) -> str:
    """Return which camera the sweeps since the previous report lacked, and what to do."""
    lacked = {n: count - previous.missing.get(n, 0) for n, count in counters.missing.items()}
    advice = 'set missing_camera_policy to drop_view'
    if sync.missing_camera_policy == 'drop_view':
        advice = f'lower sync.min_views ({sync.config.min_views})'
    return (
        f'most often missing: {max(lacked, key=lambda name: lacked[name])}; check this camera and '
        f'cameras.*.exposure_offset_ms, or {advice}'
    )


def clock_problem(node: Node) -> str:
    """Return a warning if the node uses simulated time and there is none, else an empty text."""
    uses_sim_time = node.get_parameter('use_sim_time').value
    if not uses_sim_time or node.get_clock().now().nanoseconds:
        return ''
    return 'use_sim_time is set, but nobody publishes /clock; set it to false on a vehicle'


def pipeline_status(worker: SweepWorker, pipeline: DrivingPipeline, silence: str) -> Status:
    """Return level, message and values of the pipeline.

    Args:
        worker: The worker.
        pipeline: The pipeline.
        silence: From `common_silence`.
    """
    state = worker.state
    level, message = _pipeline_health(worker, pipeline)
    if level == DiagnosticStatus.OK and silence:
        level, message = DiagnosticStatus.WARN, f'nothing to answer about: {silence}'
    return level, message, _pipeline_values(state, pipeline)


def _pipeline_values(state: WorkerState, pipeline: DrivingPipeline) -> dict[str, object]:
    totals_ms = sorted(state.totals_ms)
    since_s = _seconds_since(state.last_answer_ns)
    values: dict[str, object] = {
        'model': pipeline.model_name,
        'encoder': pipeline.encoder_identity,
        **{f'encoder {name} not used': why for name, why in pipeline.encoders_refused.items()},
        'sweeps answered': state.answered,
        'sweeps superseded': state.superseded,
        'sweeps failed': state.failed,
        'sweeps too old': state.too_old,
        'sweeps late': state.late,
        'sweeps outdated': state.outdated,
        'frames per camera': pipeline.clip.num_frames,
        'sweeps with a short clip': state.short_clips,
        'questions unanswered': state.unanswered,
        'last error': state.last_error or 'none',
        'seconds since last answer': 'none yet' if since_s is None else f'{since_s:.1f}',
    }
    if totals_ms:
        values['latency median (ms)'] = f'{statistics.median(totals_ms):.1f}'
        values['latency p95 (ms)'] = f'{totals_ms[int(0.95 * (len(totals_ms) - 1))]:.1f}'
    return values | _decoding_values(list(state.decoding))


def _decoding_values(decoding: Sequence[tuple[int, PassCounts]]) -> dict[str, object]:
    """Return how far drafts shorten the decoding of recent sweeps."""
    num_tokens = sum(tokens for tokens, _ in decoding)
    passes = PassCounts.total(counts for _, counts in decoding)
    values: dict[str, object] = {}
    if passes.num_passes:
        values['tokens per decoder pass'] = f'{num_tokens / passes.num_passes:.2f}'
    if passes.num_drafted:
        values['drafted tokens accepted'] = f'{passes.num_accepted / passes.num_drafted:.0%}'
    return values


def _pipeline_health(worker: SweepWorker, pipeline: DrivingPipeline) -> tuple[bytes, str]:
    """Return level and message; the first problem counts."""
    state = worker.state
    return (
        _failure_problem(state)
        or _stamp_order_problem(state)
        or _age_problem(state, pipeline.config)
        or _speed_problem(state)
        or _clip_problem(state, pipeline)
        or _model_problem(pipeline)
        or _foreign_stamps_problem(worker.age)
        or (DiagnosticStatus.OK, f'{state.answered} sweeps answered')
    )


def _failure_problem(state: WorkerState) -> Problem:
    if not state.failed_in_a_row:
        return None
    if state.failed_in_a_row < FAILURES_UNTIL_ERROR:
        return DiagnosticStatus.WARN, state.last_error
    message = f'{state.failed_in_a_row} sweeps failed in a row: {state.last_error}'
    return DiagnosticStatus.ERROR, message


def _stamp_order_problem(state: WorkerState) -> Problem:
    if state.not_newer_in_a_row < NOT_NEWER_UNTIL_ERROR:
        return None
    message = (
        f'{state.not_newer_in_a_row} sweeps in a row were not newer than the one before, and were '
        'dropped: stamps repeat; check the clock of the camera drivers'
    )
    return DiagnosticStatus.ERROR, message


def _age_problem(state: WorkerState, config: DriveConfig) -> Problem:
    if not state.late_in_a_row:
        return None
    is_error = state.late_in_a_row >= config.late_until_error
    message = (
        f'{state.late_in_a_row} sweeps in a row were older than {config.max_answer_age_ms:g} ms; '
        'lower retention_ratio or max_new_tokens, set deadline_ms, or check the network and the '
        'clocks of the cameras'
    )
    return DiagnosticStatus.ERROR if is_error else DiagnosticStatus.WARN, message


def _speed_problem(state: WorkerState) -> Problem:
    working_s = _seconds_since(state.begun_ns)
    if working_s is None or working_s <= STALLED_S:
        return None
    message = (
        f'a sweep has been in work for {working_s:.0f} s; lower retention_ratio or '
        'max_new_tokens, or set deadline_ms'
    )
    return DiagnosticStatus.WARN, message


def _clip_problem(state: WorkerState, pipeline: DrivingPipeline) -> Problem:
    if state.short_in_a_row < SHORT_CLIPS_UNTIL_WARNING:
        return None
    clip = pipeline.clip
    outcome = 'dropped' if pipeline.config.short_clip_policy == 'skip' else 'answered with less'
    message = (
        f'{state.short_in_a_row} sweeps in a row had not all {clip.num_frames} frames per camera '
        f'and were {outcome}; set frame_interval_ms ({clip.interval_ns / NS_PER_MS:g}) to the '
        'period of the cameras or a multiple of it, or check for lost sweeps'
    )
    return DiagnosticStatus.WARN, message


def _foreign_stamps_problem(age: SweepAge) -> Problem:
    if not age.has_foreign_stamps:
        return None
    side = 'behind' if age.lag_ns > 0 else 'ahead of'
    message = (
        f'the stamps of the cameras are {abs(age.lag_ns) / NS_PER_S:.0f} s {side} the clock of '
        'this node, so ages count from the arrival of frames; synchronise the clocks, or play '
        'the bag with --clock and set use_sim_time'
    )
    return DiagnosticStatus.WARN, message


def _model_problem(pipeline: DrivingPipeline) -> Problem:
    if not pipeline.untrained:
        return None
    message = 'the model is untrained: its answers are random words; set model to a checkpoint'
    return DiagnosticStatus.WARN, message


def _seconds_since(steady_ns: int | None) -> float | None:
    return None if steady_ns is None else (time.monotonic_ns() - steady_ns) / NS_PER_S
