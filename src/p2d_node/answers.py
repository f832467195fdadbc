"""One sweep's stage times, and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import time

from p2d_node.language_model.conversation import TextAnswer
from p2d_node.latency import StageClock
from p2d_node.records import DrivingAnswer, FrameSet, StageTimes
from p2d_node.units import NS_PER_MS
from p2d_node.views import Views
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """What answers say about the model.

    Attributes:
        name: Of the checkpoint and the format of its weights.
        encoder: Backend of the vision encoder and identity of its engine or weights.
        untrained: Whether the weights are random.
    """

    name: str
    encoder: str
    untrained: bool


def to_sweep_times(frame_set: FrameSet, clock: StageClock) -> StageTimes:
    """Return the stage times of a sweep, whose last answer has just been decoded."""
    first_ns = frame_set.first_arrival_ns or clock.started_ns
    closed_ns = frame_set.closed_ns or first_ns
    total_ns = time.monotonic_ns() - first_ns
    return StageTimes(
        sync_wait_ms=(closed_ns - first_ns) / NS_PER_MS,
        queue_ms=(clock.started_ns - closed_ns) / NS_PER_MS,
        total_ms=total_ns / NS_PER_MS,
        **{f'{stage}_ms': duration for stage, duration in clock.durations_ms.items()},
    )


def to_driving_answers(
    frame_set: FrameSet,
    questions: Sequence[str],
    texts: Sequence[TextAnswer],
    *,
    context: str,
    keep_indices: Sequence[Tensor],
    views: Views,
    model: ModelIdentity,
    times: StageTimes,
) -> list[DrivingAnswer]:
    """Return the answers of a sweep with everything they rest on.

    Args:
        frame_set: The sweep.
        questions: What was asked.
        texts: The answer to each.
        context: What stood before each question; may be empty.
        keep_indices: Per camera the kept tokens; copied to the host once for all answers.
        views: Knows the number of tokens of each camera.
        model: What answered.
        times: Of the sweep; the same for all its answers.
    """
    clip = frame_set.clip
    stamps_ns = {name: tuple(f.stamp_ns for f in frames) for name, frames in clip.items()}
    on_host = (indices.cpu().numpy() for indices in keep_indices)
    kept = dict(zip(frame_set.frames, on_host, strict=True))
    return [
        DrivingAnswer(
            stamp_ns=frame_set.stamp_ns,
            question=question,
            context=context,
            answer=text.text,
            model=model.name,
            encoder=model.encoder,
            clip_stamps_ns=stamps_ns,
            tokens_total={n: len(frames) * views.count_tokens(n) for n, frames in clip.items()},
            keep_indices=kept,
            mean_log_probability=text.mean_log_probability,
            num_generated_tokens=text.num_tokens,
            passes=text.passes,
            cut=text.cut,
            broken_frames=frame_set.broken,
            times=times,
        )
        for question, text in zip(questions, texts, strict=True)
    ]
