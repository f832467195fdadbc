"""A cache of encoded keyframes on disk, so that a trial costs only prefill and decode.

One safetensors file per keyframe has its visual tokens, the order in which T-FPS picks them, and
the distance of each pick to the earlier ones. T-FPS is greedy, so the first k of that order are
its picks for any k, and no trial computes a distance. Files are written in one step. All workers
with access to the folder share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import hashlib
import json
import math
from pathlib import Path
import time

from filelock import FileLock, Timeout
from p2d_node.clips import ClipSettings, NO_CLIP
from p2d_node.durable_files import write_bytes, write_faults
from p2d_node.errors import ConfigError, P2dError
from p2d_node.evaluation.answering import (
    check_images,
    describe_failure,
    digest_sweep,
    Keyframe,
    load_sweep,
)
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import CameraFrame, FrameSet
from p2d_node.token_selection import keep_by_coverage, order_tokens, TokenOrder
from safetensors import safe_open, SafetensorError
from safetensors.torch import save
import torch
from torch import Tensor

LAYOUT = 1
"""Version of the files' content; increase it if the content changes."""

TOKEN_TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

MAX_HEADER_BYTES = 64 << 10
"""Of a file, before its tensors: their names and shapes take 300."""

MAX_VALUE_BYTES = 8

POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedKeyframe:
    """A keyframe after the vision encoder.

    Attributes:
        keyframe: Its questions.
        frame_set: The sweep, without images.
        visual_tokens: Float [views, tokens, features], on the CPU; may be memory-mapped.
        order: All tokens of every view in the order of T-FPS; None if the selection depends on
            more than the visual tokens.
    """

    keyframe: Keyframe
    frame_set: FrameSet
    visual_tokens: Tensor
    order: TokenOrder | None

    def keep_indices(
        self, num_keep: Sequence[int], weights: Sequence[float], *, adaptive: bool
    ) -> list[Tensor] | None:
        """Return the indices that the pipeline would keep per view; None if there is no order.

        Args:
            num_keep: Per view the number of kept tokens.
            weights: Per view its retention ratio, by which an adaptive split weighs it.
            adaptive: Whether the sweep's views share one budget; see `keep_by_coverage`.
        """
        if self.order is None:
            return None
        indices = self.order.indices
        if adaptive:
            budget = sum(num_keep)
            return keep_by_coverage(list(indices), list(self.order.distances), budget, weights)
        return [view[:n].sort().values for view, n in zip(indices, num_keep, strict=True)]


def selects_by_order(pipeline: DrivingPipeline) -> bool:
    """Return whether one order of each view's tokens gives the selection for every ratio."""
    config = pipeline.config
    by_features = config.selector == 'tfps' and config.selection_scope == 'clip'
    return by_features and config.prune_layer == 0 and not pipeline.views.stitched


def digest_pictures(
    keyframes: Sequence[Keyframe],
    image_root: Path,
    cameras: Sequence[str],
    clip: ClipSettings = NO_CLIP,
) -> dict[str, str]:
    """Return keyframe name to the SHA-256 of its images, with those of its clip.

    Raises:
        ConfigError: An image is missing, empty, or cannot be read.
    """
    check_images(keyframes, image_root, cameras)
    digests = {}
    for keyframe in keyframes:
        sweep = load_sweep(keyframe, image_root, cameras, clip)
        for camera, frame in sweep.frames.items():
            if not frame.payload.data:
                name = keyframe.questions[0].images[camera]
                raise ConfigError(f'{name}: the file is empty; copy the image again')
        digests[keyframe.name] = digest_sweep(sweep)
    return digests


class KeyframeCache:
    """A folder of encoded keyframes. Use it from one thread; processes may share the folder."""

    def __init__(
        self, folder: Path, pipeline: DrivingPipeline, image_root: Path, *, model_digest: str
    ) -> None:
        """Open or create the folder.

        Args:
            folder: The cache; files of other models or settings may lie beside.
            pipeline: Encodes the keyframes that are missing.
            image_root: Folder with the images of the keyframes.
            model_digest: Fingerprint of the model's files.
        """
        self._folder = folder
        self._pipeline = pipeline
        self._image_root = image_root
        self._has_order = selects_by_order(pipeline)
        self._provenance = json.dumps(
            [
                LAYOUT,
                model_digest,
                pipeline.encoder_identity,
                pipeline.picture_settings,
                list(pipeline.num_tokens),
                self._has_order,
            ]
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise ConfigError(
                f'cache: {folder} cannot be created: {err.strerror}; choose another'
            ) from err

    def prepare(self, keyframes: Sequence[Keyframe], digests: dict[str, str]) -> Iterator[int]:
        """Encode the keyframes that are missing; yield how many are in the cache so far.

        A keyframe that another worker is encoding is skipped, and waited for at the end.
        """
        left = list(keyframes)
        yield 0
        while left:
            waiting = [keyframe for keyframe in left if not self._ensure(keyframe, digests)]
            if len(waiting) == len(left):
                time.sleep(POLL_S)
            left = waiting
            yield len(keyframes) - len(left)

    def _ensure(self, keyframe: Keyframe, digests: dict[str, str]) -> bool:
        """Encode a keyframe if it is missing; return False if another worker is encoding it."""
        path = self._path(digests[keyframe.name])
        with write_faults(f'cache: {path}', 'free some space, or choose another folder'):
            return path.is_file() or self._write(path, keyframe, digests[keyframe.name])

    def _write(self, path: Path, keyframe: Keyframe, picture_digest: str) -> bool:
        lock = path.with_suffix('.lock')
        try:
            with FileLock(lock, timeout=0):
                if not path.is_file():
                    write_bytes(path, self._encode(keyframe, picture_digest))
        except Timeout:
            return False
        lock.unlink(missing_ok=True)
        return True

    def _path(self, picture_digest: str) -> Path:
        key = hashlib.sha256(f'{self._provenance} {picture_digest}'.encode()).hexdigest()
        return self._folder / f'{key[:32]}.safetensors'

    def _encode(self, keyframe: Keyframe, picture_digest: str) -> bytes:
        cameras = tuple(self._pipeline.num_tokens)
        sweep = load_sweep(keyframe, self._image_root, cameras, self._pipeline.clip)
        if digest_sweep(sweep) != picture_digest:
            raise ConfigError(
                f'images: {keyframe.name}: they have changed since the search began; start it '
                'again'
            )
        try:
            visual_tokens = self._pipeline.encode(sweep)
        except P2dError as err:
            raise ConfigError(describe_failure(keyframe, err)) from err
        tensors = {'visual_tokens': visual_tokens.cpu().contiguous()}
        if self._has_order:
            states = self._pipeline.selection_features(sweep, visual_tokens)
            states = states.reshape(len(cameras), -1, states.shape[2])
            order = order_tokens(states, states.shape[1])
            tensors['order'] = order.indices.cpu().contiguous()
            tensors['distances'] = order.distances.cpu().contiguous()
        return bytes(save(tensors))

    def load(self, keyframe: Keyframe, picture_digest: str) -> EncodedKeyframe:
        """Return a keyframe that `prepare` has encoded.

        Raises:
            ConfigError: Its file was removed or damaged, or is not of this pipeline.
        """
        path = self._path(picture_digest)
        try:
            self._check_size(path.stat().st_size)
            with safe_open(path, framework='pt') as file:
                names = ('visual_tokens', *(('order', 'distances') if self._has_order else ()))
                self._check_shapes({name: file.get_slice(name).get_shape() for name in names})
                tensors = {name: file.get_tensor(name) for name in names}
            _check_values(tensors)
        except (OSError, KeyError, ValueError, SafetensorError) as err:
            raise ConfigError(
                f'cache: {path}: not a complete file of an encoded keyframe: {err}; remove it, '
                'and start the same command again'
            ) from err
        has_order = self._has_order
        order = TokenOrder(tensors['order'], tensors['distances']) if has_order else None
        cameras = tuple(self._pipeline.num_tokens)
        frames = {camera: CameraFrame(camera, 0, None) for camera in cameras}
        frame_set = FrameSet(stamp_ns=0, frames=frames, first_arrival_ns=0, closed_ns=0)
        num_pictures = tensors['visual_tokens'].shape[0]
        num_frames = num_pictures // self._pipeline.views.count_pictures(len(cameras))
        if num_frames < self._pipeline.clip.num_frames:
            order = None  # the ratios are those of a full clip
        return EncodedKeyframe(
            keyframe=keyframe,
            frame_set=replace(frame_set, earlier=(frame_set,) * (num_frames - 1)),
            visual_tokens=tensors['visual_tokens'],
            order=order,
        )

    def _shapes(self) -> list[list[int]]:
        """Return pictures, tokens and features of a keyframe, for clips of 1 frame and more."""
        views = self._pipeline.views
        num_pictures = views.count_pictures(len(self._pipeline.config.cameras))
        sizes = [math.prod(views.grid), self._pipeline.num_features]
        num_frames = self._pipeline.clip.num_frames
        return [[frames * num_pictures, *sizes] for frames in range(1, num_frames + 1)]

    def _check_size(self, num_bytes: int) -> None:
        """Raise `ValueError` if a file is larger than any file of an encoded keyframe."""
        num_pictures, num_tokens, num_features = self._shapes()[-1]
        num_values = num_pictures * num_tokens * (num_features + 2)  # order and distances
        max_bytes = MAX_HEADER_BYTES + MAX_VALUE_BYTES * num_values
        if num_bytes > max_bytes:
            raise ValueError(f'got {num_bytes} bytes, allowed: at most {max_bytes}')

    def _check_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Check shapes before a tensor is read.

        Raises:
            ValueError: Names the tensor, its shape and the allowed one.
        """
        sizes = self._shapes()
        got = list(shapes['visual_tokens'])
        if got not in sizes:
            allowed = ' or '.join(map(str, sizes))
            raise ValueError(f'visual_tokens: got the shape {got}, allowed: {allowed}')
        num_views = sizes[0][0]
        allowed_order = [num_views, got[0] // num_views * got[1]]
        for name, shape in shapes.items():
            if name != 'visual_tokens' and list(shape) != allowed_order:
                raise ValueError(f'{name}: got the shape {list(shape)}, allowed: {allowed_order}')


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    """Check what a search would fail on.

    Raises:
        ValueError: Names the tensor, what it has and what is allowed.
    """
    visual_tokens = tensors['visual_tokens']
    if visual_tokens.dtype not in TOKEN_TYPES or not visual_tokens.isfinite().all():
        raise ValueError('visual_tokens: got other values, allowed: finite floats')
    if 'order' not in tensors:
        return
    order, distances = tensors['order'], tensors['distances']
    every_token = torch.arange(order.shape[1]).expand_as(order)
    if order.dtype != torch.int64 or not order.sort().values.equal(every_token):
        raise ValueError(f'order: got other values, allowed: each of 0 to {order.shape[1] - 1}')
    if distances.dtype != torch.float32 or distances.isnan().any():  # the first is infinite
        raise ValueError('distances: got other values, allowed: numbers of type float32')
