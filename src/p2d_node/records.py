"""The frozen records of the pipeline; each stage takes one and returns the next.

There are two clocks, which must not be compared with each other. `stamp_ns` is the capture time
on the cameras' clock: ROS time, nanoseconds since its epoch. `first_arrival_ns` and `closed_ns`
are on the steady clock of this process (`time.monotonic_ns`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
import math
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from p2d_node.durable_files import MAX_IMAGE_BYTES, read_file
from p2d_node.errors import ConfigError
from PIL.Image import Image

NUSCENES_CAMERAS = (
    'CAM_FRONT',
    'CAM_FRONT_LEFT',
    'CAM_FRONT_RIGHT',
    'CAM_BACK',
    'CAM_BACK_LEFT',
    'CAM_BACK_RIGHT',
)
"""The six views, in the order that driving VLMs are trained on."""


@runtime_checkable
class RawImageLike(Protocol):
    """The fields of `sensor_msgs/Image` that decoding reads."""

    height: int
    width: int
    encoding: str
    step: int
    is_bigendian: int
    data: Any


@runtime_checkable
class CompressedImageLike(Protocol):
    """The fields of `sensor_msgs/CompressedImage` that decoding reads."""

    format: str
    data: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RawImage:
    """An uncompressed frame without ROS; fields as in `sensor_msgs/Image`."""

    height: int
    width: int
    encoding: str
    step: int
    data: Any
    is_bigendian: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedImage:
    """A JPEG or PNG frame without ROS; fields as in `sensor_msgs/CompressedImage`."""

    format: str
    data: Any


@dataclass(frozen=True, slots=True)
class CameraFrame:
    """One frame of one camera, not yet decoded.

    Attributes:
        camera: Name of the camera, e.g. `CAM_FRONT`.
        stamp_ns: Capture time, ROS time in nanoseconds.
        payload: The image message; the synchroniser does not read it.
    """

    camera: str
    stamp_ns: int
    payload: Any


class _Frames(dict[str, CameraFrame]):
    """A dict that can be known after it is gone: tokens of a sweep do not keep its messages."""

    __slots__ = ('__weakref__',)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSet:
    """The frames of one sweep, at most one per camera.

    Attributes:
        stamp_ns: Capture time of the reference camera, ROS time in nanoseconds; if that camera is
            missing, its expected capture time.
        frames: Camera name to frame, in the configured camera order.
        missing: Cameras without a frame, in the configured order.
        epoch: Number of time resets before this set; (epoch, stamp_ns) orders sets.
        broken: Camera to what is wrong with its frame; these cameras are missing too.
        first_arrival_ns: Arrival of the set's first frame, steady clock, nanoseconds. 0: the
            frames did not arrive one by one, and times start with the work.
        closed_ns: When the set was closed, steady clock, nanoseconds.
        earlier: The sweeps before it in its clip, oldest first; they have no `earlier` ones
            themselves.
    """

    stamp_ns: int
    frames: Mapping[str, CameraFrame]
    missing: tuple[str, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)
    epoch: int = 0
    first_arrival_ns: int = 0
    closed_ns: int = 0
    earlier: tuple[FrameSet, ...] = ()

    def __post_init__(self) -> None:
        """Make `frames` an object of its own, which copies with other `earlier` sweeps share."""
        if not isinstance(self.frames, _Frames):
            object.__setattr__(self, 'frames', _Frames(self.frames))

    def without_images(self) -> FrameSet:
        """Return the set without `earlier`, and with None in place of the messages of frames."""
        frames = {name: replace(frame, payload=None) for name, frame in self.frames.items()}
        return replace(self, frames=frames, earlier=())

    @classmethod
    def from_images(
        cls, images: Mapping[str, Any], *, stamps_ns: Mapping[str, int] | None = None
    ) -> FrameSet:
        """Make a sweep of images.

        Args:
            images: Camera to the path of a JPEG or PNG file, a Pillow image, or RGB pixels, uint8
                [height, width, 3]. nuScenes' cameras are put in the model's order, others stay
                in the given order.
            stamps_ns: Camera to capture time, nanoseconds; None: all 0.

        Raises:
            ConfigError: There is no image, or one that cannot be used.
        """
        if not images:
            raise ConfigError('images: got none, allowed: one per camera')
        known = [name for name in NUSCENES_CAMERAS if name in images]
        names = [*known, *(name for name in images if name not in known)]
        stamps = {name: (stamps_ns or {}).get(name, 0) for name in names}
        frames = {n: CameraFrame(n, stamps[n], _to_payload(n, images[n])) for n in names}
        return cls(stamp_ns=stamps[names[0]], frames=frames)

    def without(self, broken: Mapping[str, str]) -> FrameSet:
        """Return the set without broken frames.

        Args:
            broken: Camera to what is wrong with its frame.
        """
        return replace(
            self,
            frames={name: frame for name, frame in self.frames.items() if name not in broken},
            missing=(*self.missing, *broken),
            broken=broken,
        )

    @property
    def clip(self) -> dict[str, tuple[CameraFrame, ...]]:
        """Camera to its frames in the clip, oldest first; the last one is that of this sweep."""
        sweeps = (*self.earlier, self)
        return {
            name: tuple(sweep.frames[name] for sweep in sweeps if name in sweep.frames)
            for name in self.frames
        }

    @property
    def picture_cameras(self) -> tuple[str, ...]:
        """The camera of each frame of the clip, camera by camera."""
        return tuple(name for name, frames in self.clip.items() for _ in frames)

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: newer sets compare greater, also across time resets."""
        return (self.epoch, self.stamp_ns)


def _to_payload(camera: str, image: Any) -> RawImage | CompressedImage:
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        try:
            content = read_file(path, MAX_IMAGE_BYTES)
            return CompressedImage(format=path.suffix.lstrip('.'), data=content)
        except OSError as err:
            raise ConfigError(
                f'images: {camera}: {path} cannot be read: {err.strerror}; name an image file'
            ) from err
    if isinstance(image, Image):
        image = image.convert('RGB')
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ConfigError(
            f'images: {camera}: got {pixels.dtype} {list(pixels.shape)}, allowed: a path, a '
            'Pillow image, or RGB pixels, uint8 [height, width, 3]'
        )
    height, width, _ = pixels.shape
    data = np.ascontiguousarray(pixels).reshape(-1)
    return RawImage(height=height, width=width, encoding='rgb8', step=3 * width, data=data)


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """Pixels of one view.

    Attributes:
        camera: Name of the camera.
        stamp_ns: Capture time, ROS time in nanoseconds.
        pixels: uint8 [height, width, 3]; may be a read-only view of the message's bytes.
        channel_order: `rgb` or `bgr`. Channels are swapped after the resize, which costs less.
    """

    camera: str
    stamp_ns: int
    pixels: npt.NDArray[np.uint8]
    channel_order: str


class Cut(str, Enum):
    """Why an answer ended."""

    END = 'end'
    LENGTH = 'length'
    DEADLINE = 'deadline'
    STOP = 'stop'


@dataclass(frozen=True, slots=True)
class PassCounts:
    """What decoding answers cost, and how far drafts shortened it.

    Attributes:
        num_passes: Passes of the decoder, the prefill of the question included; without drafts
            one per generated token.
        num_drafted: Drafted tokens that were verified.
        num_accepted: Those that became part of the answer.
    """

    num_passes: int = 0
    num_drafted: int = 0
    num_accepted: int = 0

    def __add__(self, other: PassCounts) -> PassCounts:
        """Return the counts of both."""
        return PassCounts(
            self.num_passes + other.num_passes,
            self.num_drafted + other.num_drafted,
            self.num_accepted + other.num_accepted,
        )

    @classmethod
    def total(cls, counts: Iterable[PassCounts]) -> PassCounts:
        """Return the counts of all."""
        return sum(counts, cls())


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Stage durations of one sweep, milliseconds on the steady clock; 0.0 if a stage did not run.

    Attributes:
        sync_wait_ms: From the first frame's arrival to the closing of the set.
        queue_ms: From the closing of the set to the start of work.
        decode_ms: Bytes to pixels, all views; what was done while the sweep waited is in queue_ms.
        preprocess_ms: Pixels to the encoder's input, all views; as decode_ms.
        encode_ms: Encoder's input to visual tokens, all views.
        select_ms: Visual tokens to kept indices, all views.
        prefill_ms: Language model over prompts and visual tokens, sum of all questions.
        ttft_ms: From the start of work to the first token of the first answer.
        generate_ms: Decoding after the first token, sum of all questions.
        total_ms: From the first frame's arrival to the last answer.
    """

    sync_wait_ms: float = 0.0
    queue_ms: float = 0.0
    decode_ms: float = 0.0
    preprocess_ms: float = 0.0
    encode_ms: float = 0.0
    select_ms: float = 0.0
    prefill_ms: float = 0.0
    ttft_ms: float = 0.0
    generate_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DrivingAnswer:
    """One answer about one sweep; mirrors `p2d_msgs/DrivingAnswer`.

    Attributes:
        stamp_ns: Capture time of the reference camera, ROS time in nanoseconds.
        question: The question as asked.
        context: The text that stood before it; empty if there was none.
        answer: The model's text, without special tokens.
        model: Name of the checkpoint; contains `untrained` if the weights are random.
        encoder: Backend of the vision encoder and identity of its engine or weights.
        clip_stamps_ns: Camera, in the model's order, to the capture times of the frames of its
            clip, oldest first, ROS time in nanoseconds; without clips it has one frame.
        tokens_total: Camera to number of visual tokens before selection, of all frames of its
            clip.
        keep_indices: Camera to the indices of its kept tokens, int64 [kept], ascending. In a clip
            the tokens of all frames are numbered one frame after the other. If views are stitched
            into one picture, they index the tokens of that picture.
        mean_log_probability: Mean natural-log probability of the generated tokens; NaN if there
            are none.
        num_generated_tokens: Number of generated tokens, the end token included.
        cut: Why the answer ended.
        passes: What decoding cost.
        broken_frames: Camera that was left out to what is wrong with its frame.
        times: Stage times of the sweep; the same in all its answers.
    """

    stamp_ns: int
    question: str
    answer: str
    model: str
    encoder: str
    clip_stamps_ns: Mapping[str, tuple[int, ...]]
    tokens_total: Mapping[str, int]
    keep_indices: Mapping[str, npt.NDArray[np.int64]]
    mean_log_probability: float
    num_generated_tokens: int
    cut: Cut
    passes: PassCounts = field(default_factory=PassCounts)
    context: str = ''
    broken_frames: Mapping[str, str] = field(default_factory=dict)
    times: StageTimes = field(default_factory=StageTimes)

    @property
    def camera_stamps_ns(self) -> dict[str, int]:
        """Camera to capture time of its newest frame, ROS time in nanoseconds."""
        return {camera: stamps[-1] for camera, stamps in self.clip_stamps_ns.items()}

    @property
    def tokens_kept(self) -> dict[str, int]:
        """Camera to number of kept visual tokens."""
        return {camera: len(indices) for camera, indices in self.keep_indices.items()}

    def kept_per_frame(self, camera: str) -> list[npt.NDArray[np.int64]]:
        """Return the indices of the kept tokens of each frame of a camera, oldest first."""
        num_frames = len(self.clip_stamps_ns[camera])
        num_tokens = self.tokens_total[camera] // num_frames
        kept = self.keep_indices[camera]
        borders = np.searchsorted(kept, np.arange(1, num_frames) * num_tokens)
        parts = np.split(kept, borders)
        return [part - frame * num_tokens for frame, part in enumerate(parts)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrivingChoice:
    """The likelihoods of given answers; for multiple choice and for driving actions.

    Attributes:
        stamp_ns: Capture time of the reference camera, ROS time in nanoseconds.
        question: The question as asked.
        model: Name of the checkpoint; contains `untrained` if the weights are random.
        log_likelihoods: Choice to the natural log of the probability that this text is the
            model's whole answer.
        tokens_kept: Camera to number of kept visual tokens.
    """

    stamp_ns: int
    question: str
    model: str
    log_likelihoods: Mapping[str, float]
    tokens_kept: Mapping[str, int]

    @property
    def probabilities(self) -> dict[str, float]:
        """Choice to its probability, under the condition that the answer is one of the choices."""
        largest = max(self.log_likelihoods.values())
        weights = {c: math.exp(value - largest) for c, value in self.log_likelihoods.items()}
        total = sum(weights.values())
        return {choice: weight / total for choice, weight in weights.items()}

    @property
    def choice(self) -> str:
        """The most likely choice; the first one in a tie."""
        return max(self.log_likelihoods, key=lambda choice: self.log_likelihoods[choice])
