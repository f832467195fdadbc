"""The frames of a sweep come in; the vision encoder's input goes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import os
import time

from p2d_node.errors import ImageDecodeError
from p2d_node.image_decoding import decode_frame
from p2d_node.preprocessing import FrameStack, ImageProcessing, normalize, resize_frame
from p2d_node.records import CameraFrame, DecodedFrame, FrameSet
from p2d_node.views import Views
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PreparedFrames:
    """What is done of a sweep before the vision encoder.

    Attributes:
        frames: The frames that can be used; empty once `pixels` is computed.
        broken: Camera to what is wrong with its frame.
        pixels: The encoder's input of `frames`, if it was computed; see `preprocess`.
    """

    frames: Sequence[DecodedFrame]
    broken: Mapping[str, str]
    pixels: Tensor | None = None


class VisionFrontend:
    """Decodes and preprocesses the frames of a sweep, one thread per view or core.

    Use it from one thread at a time, except `prepare`. Threads and buffers are allocated once;
    `close` frees them.

    Attributes:
        frame_size: Height and width, pixels, of frames that it takes.
        decoded_ns: Steady clock when it was last done with a frame, also in `prepare`.
    """

    def __init__(
        self,
        views: Views,
        processing: ImageProcessing,
        *,
        num_cameras: int,
        frame_size: tuple[int, int] | None,
        max_pixels: int,
        device: torch.device,
    ) -> None:
        """Allocate threads and buffers.

        Args:
            views: How views become pictures.
            processing: The checkpoint's resize and normalisation.
            num_cameras: Largest number of frames of a sweep.
            frame_size: Height and width of the frames, pixels, for an engine that resizes by
                itself; None for an encoder that takes pixel_values.
            max_pixels: Largest height x width of a frame.
            device: Of the pixel_values.
        """
        self._views = views
        self._processing = processing
        self._max_pixels = max_pixels
        self._device = device
        self.decoded_ns = 0
        # More threads than cores are not faster, and hold more large pictures at once.
        num_threads = min(num_cameras, len(os.sched_getaffinity(0)))
        self._decoders, self._resizers = (
            ThreadPoolExecutor(max_workers=num_threads, thread_name_prefix=name)
            for name in (
                'decode',
                'resize',
            )  # so that none waits for slow frames of the next sweep
        )
        self._stack: FrameStack | None = None
        self.frame_size = frame_size or (processing.height_px, processing.width_px)
        if frame_size is not None:
            num_pictures = views.count_pictures(num_cameras)
            self._stack = FrameStack(num_pictures, *frame_size, pinned=device.type == 'cuda')

    def prepare(self, frame_set: FrameSet) -> PreparedFrames:
        """Decode and preprocess a sweep; another thread may be at work on another sweep.

        Frames are only decoded if some are broken, or if `preprocess` would overwrite a buffer.

        Raises:
            ImageDecodeError: As `preprocess`.
        """
        decoded = self.decode(frame_set)
        if decoded.broken or self._stack is not None:
            return decoded
        return PreparedFrames((), {}, self.preprocess(decoded.frames))

    def decode(self, frame_set: FrameSet) -> PreparedFrames:
        """Decode the frames of a sweep, in its order of cameras."""
        decoded = list(self._decoders.map(self._decode_frame, frame_set.frames.values()))
        broken: dict[str, str] = {}
        for result in decoded:
            if isinstance(result, ImageDecodeError):
                broken |= result.broken
        frames = [result for result in decoded if isinstance(result, DecodedFrame)]
        return PreparedFrames(frames, broken)

    def _decode_frame(self, frame: CameraFrame) -> DecodedFrame | ImageDecodeError:
        try:
            return decode_frame(frame, max_pixels=self._max_pixels)
        except ImageDecodeError as err:
            return err
        finally:
            self.decoded_ns = time.monotonic_ns()

    def decode_again(self, frame: CameraFrame) -> DecodedFrame:
        """Decode one frame of an answered sweep, in this thread.

        Raises:
            ImageDecodeError: It cannot be used.
        """
        return decode_frame(frame, max_pixels=self._max_pixels)

    def preprocess(self, frames: Sequence[DecodedFrame]) -> Tensor:
        """Return the encoder's input.

        Returns:
            pixel_values float32 [pictures, 3, height, width] on the device; or, for an engine that
            resizes, uint8 BGR [pictures, height, width, 3] on the host, which the next call
            overwrites.

        Raises:
            ImageDecodeError: Frames of a size that the encoder does not take.
        """
        pictures = self._views.to_pictures(frames)
        if self._stack is not None:
            return self._stack.fill(pictures, self._resizers)
        resized = list(self._resizers.map(lambda p: resize_frame(p, self._processing), pictures))
        return normalize(resized, self._processing, self._device)

    def close(self) -> None:
        """Stop the threads."""
        for pool in (self._decoders, self._resizers):
            pool.shutdown(wait=False, cancel_futures=True)
