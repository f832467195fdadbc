"""Visual tokens of the sweeps of a clip, on the device: no frame is encoded twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
import weakref

from p2d_node.clips import ClipSettings, most_crowded
from p2d_node.config import DriveConfig
from p2d_node.records import FrameSet
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class EncodedSweep:
    """A sweep after the vision encoder.

    Attributes:
        frame_set: The sweep, without its broken frames; `EncodedSweeps` keeps no images.
        tokens: Float [cameras, tokens, features], one view per camera of the sweep.
    """

    frame_set: FrameSet
    tokens: Tensor


class EncodedSweeps:
    """The sweeps that coming clips may need. Use it from one thread.

    It holds the tokens of at most `max_sweeps` sweeps within the reach of a clip, as long as
    others hold their frames. A sweep is known by its frames themselves, not by its stamp.
    """

    def __init__(self, settings: ClipSettings) -> None:
        """Hold nothing yet."""
        self._reach_ns, self._max_sweeps = settings.reach_ns, settings.max_sweeps
        self._sweeps: list[tuple[weakref.ref[Any], EncodedSweep]] = []
        self._broken: deque[tuple[weakref.ref[Any], DriveConfig]] = deque(maxlen=self._max_sweeps)

    def __len__(self) -> int:
        """Return the number of sweeps."""
        return len(self._sweeps)

    def find(self, frame_set: FrameSet) -> EncodedSweep | None:
        """Return a sweep that was added; None if it was not, or is forgotten."""
        for frames, encoded in self._sweeps:
            if frames() is frame_set.frames:
                return encoded
        return None

    def note_broken(self, frame_set: FrameSet, config: DriveConfig) -> None:
        """Remember that a sweep cannot be encoded: finding that out may take seconds.

        Args:
            frame_set: The sweep.
            config: Says which sweeps count as broken.
        """
        self._broken.append((weakref.ref(frame_set.frames), config))

    def is_broken(self, frame_set: FrameSet, config: DriveConfig) -> bool:
        """Tell whether a sweep was noted as broken with this configuration."""
        return any(
            frames() is frame_set.frames and config is noted for frames, noted in self._broken
        )

    def add(self, source: FrameSet, whole: FrameSet, tokens: Tensor) -> EncodedSweep:
        """Add a sweep, and forget those that no clip shares with it.

        Args:
            source: The sweep as it came.
            whole: The same without its broken frames.
            tokens: Of `whole`, from the vision encoder; they are copied.
        """
        encoded = EncodedSweep(whole.without_images(), tokens.clone())
        self._sweeps = [kept for kept in self._sweeps if self._may_share(*kept, source)]
        self._sweeps.append((weakref.ref(source.frames), encoded))
        self._sweeps.sort(key=lambda kept: kept[1].frame_set.stamp_ns)
        if len(self._sweeps) > self._max_sweeps:
            del self._sweeps[most_crowded([kept.frame_set.stamp_ns for _, kept in self._sweeps])]
        return encoded

    def _may_share(self, frames: weakref.ref[Any], kept: EncodedSweep, newest: FrameSet) -> bool:
        distance_ns = abs(kept.frame_set.stamp_ns - newest.stamp_ns)
        is_near = kept.frame_set.epoch == newest.epoch and distance_ns <= self._reach_ns
        return is_near and frames() is not None

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
