"""Visual tokens of the sweeps of a clip, on the device: no frame is encoded twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2d_node.clips import ClipSettings, most_crowded
from p2d_node.records import FrameSet
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class EncodedSweep:
    """A sweep after the vision encoder.

    Attributes:
        frame_set: The sweep, without its broken frames.
        tokens: Float [cameras, tokens, features], one view per camera of the sweep.
    """

    frame_set: FrameSet
    tokens: Tensor


class EncodedSweeps:
    """The sweeps that coming clips may need. Use it from one thread.

    It holds the tokens of at most `max_sweeps` sweeps within the reach of a clip, and their
    messages. A sweep is known by its frames themselves, not by its stamp.
    """

    def __init__(self, settings: ClipSettings) -> None:
        """Hold nothing yet."""
        self._reach_ns, self._max_sweeps = settings.reach_ns, settings.max_sweeps
        self._sweeps: list[tuple[FrameSet, EncodedSweep]] = []

    def __len__(self) -> int:
        """Return the number of sweeps."""
        return len(self._sweeps)

    def find(self, frame_set: FrameSet) -> EncodedSweep | None:
        """Return a sweep that was added; None if it was not, or is forgotten."""
        for source, encoded in self._sweeps:
            if source.frames is frame_set.frames:
                return encoded
        return None

    def add(self, source: FrameSet, whole: FrameSet, tokens: Tensor) -> EncodedSweep:
        """Add a sweep, and forget those that no clip shares with it.

        Args:
            source: The sweep as it came.
            whole: The same without its broken frames.
            tokens: Of `whole`, from the vision encoder; they are copied.
        """
        encoded = EncodedSweep(whole, tokens.clone())
        self._sweeps = [kept for kept in self._sweeps if self._may_share(kept[0], source)]
        self._sweeps.append((source, encoded))
        self._sweeps.sort(key=lambda kept: kept[0].stamp_ns)
        if len(self._sweeps) > self._max_sweeps:
            del self._sweeps[most_crowded([kept[0].stamp_ns for kept in self._sweeps])]
        return encoded

    def _may_share(self, one: FrameSet, other: FrameSet) -> bool:
        return one.epoch == other.epoch and abs(one.stamp_ns - other.stamp_ns) <= self._reach_ns

    def forget(self) -> None:
        """Free the tokens of all sweeps."""
        self._sweeps.clear()


def join_tokens(sweeps: Sequence[EncodedSweep], newest: FrameSet) -> Tensor:
    """Return the tokens of a clip: camera by camera, the frames of each from old to new.

    Args:
        sweeps: Of the clip, oldest first. A sweep that lacks a camera adds no frame of it.
        newest: The last one, with its cameras in the wanted order.

    Returns:
        Float [pictures, tokens, features].
    """
    places = [{name: i for i, name in enumerate(s.frame_set.frames)} for s in sweeps]
    return torch.stack(
        [
            sweep.tokens[place[camera]]
            for camera in newest.frames
            for sweep, place in zip(sweeps, places, strict=True)
            if camera in place
        ]
    )
