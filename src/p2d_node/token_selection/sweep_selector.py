"""Retention ratios come in; the kept visual tokens of a sweep go out, per camera."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2d_node.clips import count_frames
from p2d_node.config import DriveConfig
from p2d_node.token_selection.allocation import select_adaptively
from p2d_node.token_selection.base import (
    count_kept,
    share_out,
    split_evenly,
    TokenSelector,
)
from p2d_node.token_selection.factory import make_selector
from p2d_node.token_selection.tfps import TfpsSelector
from p2d_node.token_selection.tfps_motion import MotionTfpsSelector
from p2d_node.views import Grid, ViewBatch, Views
import torch
from torch import Tensor

MOTION = 'tfps_motion'
"""The selector that sees which frames and cameras tokens are of, and not only their features."""


class SweepSelector:
    """Chooses the kept tokens of every camera. Use it from one thread at a time.

    It holds its selectors from sweep to sweep: on GPUs without Triton they own CUDA graphs.
    """

    def __init__(self, views: Views) -> None:
        """Select for pictures that are made of `views`."""
        self._views = views
        self._tfps = TfpsSelector()
        self._motion = MotionTfpsSelector()
        self._selectors: dict[tuple[str, Grid], TokenSelector] = {}

    def select(
        self,
        visual_states: Tensor,
        cameras: Sequence[str],
        config: DriveConfig,
        *,
        missing: Sequence[str] = (),
    ) -> list[Tensor]:
        """Choose the kept tokens of a sweep, or of its clip.

        Args:
            visual_states: Float [pictures, tokens, hidden], the features to select by.
            cameras: The camera of each view in the pictures; in a clip once per frame.
            config: Its `selector`, `selection_scope`, `allocation` and retention ratios are used.
            missing: Cameras that the sweep lacks. The others keep the tokens that these would
                have kept.

        Returns:
            Per camera the kept indices into the tokens of its picture, or of all frames of its
            clip; int64, ascending.

        Raises:
            InferenceError: On a CPU also for NaN or infinite features.
        """
        num_frames = count_frames(cameras)
        num_keep = self._count(num_frames, missing, config)
        batches = self._views.split_states(visual_states, cameras)
        if config.allocation == 'adaptive':
            kept = self._select_adaptively(batches, num_keep, config)
        else:
            kept = {
                camera: indices
                for batch in batches
                for camera, indices in self._select_fixed(batch, num_keep, config).items()
            }
        return [self._views.to_picture_indices(camera, kept[camera]) for camera in num_frames]

    def _count(
        self, num_frames: Mapping[str, int], missing: Sequence[str], config: DriveConfig
    ) -> dict[str, int]:
        longest = max(num_frames.values())
        everyone = {**num_frames, **dict.fromkeys(missing, longest)}
        totals = [self._views.count_tokens(name) * count for name, count in everyone.items()]
        ratios = [config.retention_ratio_of(camera) for camera in everyone]
        counts = count_kept(totals, ratios, stitched=self._views.stitched)
        present = slice(len(num_frames))
        shared = share_out(counts[present], totals[present], sum(counts[len(num_frames) :]))
        return dict(zip(num_frames, shared, strict=True))

    def _select_adaptively(
        self, batches: Sequence[ViewBatch], num_keep: Mapping[str, int], config: DriveConfig
    ) -> dict[str, Tensor]:
        cameras = [camera for batch in batches for camera in batch.cameras]
        kept = select_adaptively(
            [batch.states for batch in batches],
            [num_keep[camera] for camera in cameras],
            [config.retention_ratio_of(camera) for camera in cameras],
            self._tfps,
        )
        return dict(zip(cameras, kept, strict=True))

    def _select_fixed(
        self, batch: ViewBatch, num_keep: Mapping[str, int], config: DriveConfig
    ) -> dict[str, Tensor]:
        counts = [num_keep[camera] for camera in batch.cameras]
        if config.selector == MOTION:
            kept = self._motion.select(
                batch.states,
                counts,
                num_frames=batch.num_frames,
                neighbours=_neighbours(batch.cameras, config),
            )
        elif config.selection_scope == 'frame':
            kept = self._select_frames(batch, counts, config.selector)
        else:
            rows, columns = batch.grid
            selector = self._selector(config.selector, (batch.num_frames * rows, columns))
            kept = selector.select(batch.states, counts)
        return dict(zip(batch.cameras, kept, strict=True))

    def _select_frames(
        self, batch: ViewBatch, num_keep: Sequence[int], method: str
    ) -> list[Tensor]:
        """Select in each frame of a clip by itself, as many tokens in all as over the clip."""
        num_frames = batch.num_frames
        frames = batch.states.reshape(len(num_keep) * num_frames, -1, batch.states.shape[2])
        counts = [part for count in num_keep for part in split_evenly(count, num_frames)]
        kept = self._selector(method, batch.grid).select(frames, counts)
        num_tokens = frames.shape[1]
        shifted = [k + i % num_frames * num_tokens for i, k in enumerate(kept)]
        return [torch.cat(shifted[i : i + num_frames]) for i in range(0, len(kept), num_frames)]

    def _selector(self, method: str, grid: Grid) -> TokenSelector:
        key = (method, grid)
        if key not in self._selectors:
            self._selectors[key] = make_selector(method, grid)
        return self._selectors[key]


def _neighbours(cameras: Sequence[str], config: DriveConfig) -> list[list[int]]:
    """Return per camera the places of the cameras beside it.

    The cameras are a ring in the order of their exposure, as a spinning lidar triggers them, or
    in the order of the sweep if they expose together.
    """
    offsets_ms = {name: camera.exposure_offset_ms for name, camera in config.cameras.items()}
    in_order = sorted(cameras, key=lambda name: offsets_ms.get(name, 0.0))
    ring = [cameras.index(name) for name in in_order]
    if len(ring) == 1:
        return [[]]
    beside: dict[int, list[int]] = {}
    for place, view in enumerate(ring):
        beside[view] = sorted({ring[place - 1], ring[(place + 1) % len(ring)]})
    return [beside[view] for view in range(len(ring))]
