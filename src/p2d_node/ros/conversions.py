"""Converts records to ROS messages."""

from __future__ import annotations

import array
from collections.abc import Mapping, Sequence

from builtin_interfaces.msg import Time
import numpy as np
import numpy.typing as npt
from p2d_msgs.msg import DrivingAnswer as DrivingAnswerMsg
from p2d_msgs.msg import StageTiming
from p2d_node.latency import LatencyWindow
from p2d_node.records import DrivingAnswer, FrameSet, PassCounts, StageTimes
from p2d_node.units import NS_PER_MS, NS_PER_S
from sensor_msgs.msg import Image
from std_msgs.msg import Header


def to_time(stamp_ns: int) -> Time:
    """Return nanoseconds of ROS time as a message."""
    sec, nanosec = divmod(stamp_ns, NS_PER_S)
    return Time(sec=sec, nanosec=nanosec)


def to_nanoseconds(stamp: Time) -> int:
    """Return the stamp of a message as nanoseconds of ROS time."""
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


def is_time(stamp: Time) -> bool:
    """Tell whether a message is a time of ROS; a peer can send others in its type."""
    return bool(stamp.sec >= 0 and stamp.nanosec < NS_PER_S)


def to_header(frame_set: FrameSet, reference_camera: str) -> Header:
    """Return the header of what is published about a sweep.

    Its `frame_id` is that of the reference camera's message, empty if that camera is missing.
    """
    frame = frame_set.frames.get(reference_camera)
    frame_id = str(frame.payload.header.frame_id) if frame else ''
    return Header(stamp=to_time(frame_set.stamp_ns), frame_id=frame_id)


def to_times_ms(answer: DrivingAnswer, *, now_ns: int) -> dict[str, float]:
    """Return the times of an answer's sweep by their field of StageTiming, milliseconds.

    Args:
        answer: The answer.
        now_ns: ROS time at publishing.
    """
    times = {name: getattr(answer.times, name) for name in StageTimes.__dataclass_fields__}
    oldest_ns = min(answer.camera_stamps_ns.values())
    return {
        **times,
        'age_at_publish_ms': (now_ns - answer.stamp_ns) / NS_PER_MS,
        'end_to_end_ms': (now_ns - oldest_ns) / NS_PER_MS,
    }


def to_pass_counts(passes: PassCounts) -> dict[str, int]:
    """Return the counts by their field of DrivingAnswer and StageTiming."""
    return {
        'num_decoder_passes': passes.num_passes,
        'num_drafted_tokens': passes.num_drafted,
        'num_accepted_tokens': passes.num_accepted,
    }


def to_timing(
    header: Header,
    times_ms: Mapping[str, float],
    answers: Sequence[DrivingAnswer],
    window: LatencyWindow,
) -> StageTiming:
    """Return the times of a sweep as a message.

    Args:
        header: The header of the sweep.
        times_ms: From `to_times_ms`.
        answers: All answers about the sweep.
        window: Gives the percentiles.
    """
    return StageTiming(
        header=header,
        **times_ms,
        num_generated_tokens=sum(answer.num_generated_tokens for answer in answers),
        **to_pass_counts(PassCounts.total(answer.passes for answer in answers)),
        window_sweeps=len(window),
        **window.percentiles,
    )


def to_answer(
    answer: DrivingAnswer, header: Header, *, now_ns: int, late: bool
) -> DrivingAnswerMsg:
    """Return an answer as a message.

    Args:
        answer: The answer.
        header: The header of its sweep.
        now_ns: ROS time at publishing.
        late: Whether the sweep is older than allowed.
    """
    return DrivingAnswerMsg(
        header=header,
        question=answer.question,
        context=answer.context,
        answer=answer.answer,
        model=answer.model,
        encoder=answer.encoder,
        cameras=list(answer.camera_stamps_ns),
        camera_stamps=[to_time(stamp_ns) for stamp_ns in answer.camera_stamps_ns.values()],
        tokens_total=list(answer.tokens_total.values()),
        tokens_kept=list(answer.tokens_kept.values()),
        num_frames=[len(stamps) for stamps in answer.clip_stamps_ns.values()],
        frame_stamps=[to_time(ns) for stamps in answer.clip_stamps_ns.values() for ns in stamps],
        tokens_kept_per_frame=[
            len(kept) for camera in answer.keep_indices for kept in answer.kept_per_frame(camera)
        ],
        mean_log_probability=answer.mean_log_probability,
        num_generated_tokens=answer.num_generated_tokens,
        **to_pass_counts(answer.passes),
        cut=answer.cut.value,
        late=late,
        timing=StageTiming(header=header, **to_times_ms(answer, now_ns=now_ns)),
    )


def to_image(pixels: npt.NDArray[np.uint8], header: Header) -> Image:
    """Return BGR pixels, uint8 [height, width, 3], as a message."""
    height, width, _ = pixels.shape
    # rclpy takes an `array` as it is, but checks every element of other sequences.
    data = array.array('B', np.ascontiguousarray(pixels).tobytes())
    return Image(
        header=header, height=height, width=width, encoding='bgr8', step=3 * width, data=data
    )
