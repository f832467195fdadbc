"""Retention ratios come in; the kept visual tokens of a sweep go out, per camera."""

from __future__ import annotations

from collections.abc import Sequence

from p2d_node.config import DriveConfig
from p2d_node.token_selection.allocation import select_adaptively
from p2d_node.token_selection.base import count_kept, share_out, TokenSelector
from p2d_node.token_selection.factory import make_selector
from p2d_node.token_selection.tfps import TfpsSelector
from p2d_node.views import Grid, ViewBatch, Views
from torch import Tensor


class SweepSelector:
    """Chooses the kept tokens of every camera. Use it from one thread at a time.

    It holds its selectors from sweep to sweep: on GPUs without Triton they own CUDA graphs.
    """

    def __init__(self, views: Views) -> None:
        """Select for pictures that are made of `views`."""
        self._views = views
        self._tfps = TfpsSelector()
        self._selectors: dict[tuple[str, Grid], TokenSelector] = {}

    def select(
        self,
        visual_states: Tensor,
        cameras: Sequence[str],
        config: DriveConfig,
        *,
        missing: Sequence[str] = (),
    ) -> list[Tensor]:
        """Choose the kept tokens of a sweep.

        Args:
            visual_states: Float [pictures, tokens, hidden], the features to select by.
            cameras: The cameras of the sweep, in the order of their views.
            config: Its `selector`, `allocation` and retention ratios are used.
            missing: Cameras that the sweep lacks. The others keep the tokens that these would
                have kept.

        Returns:
            Per camera the kept indices into the tokens of its picture, int64, ascending.

        Raises:
            InferenceError: On a CPU also for NaN or infinite features.
        """
        ratios = [config.retention_ratio_of(camera) for camera in cameras]
        num_keep = self._count(cameras, missing, config)
        batches = self._views.split_states(visual_states, cameras)
        if config.allocation == 'adaptive':
            states = [batch.states for batch in batches]
            kept = select_adaptively(states, list(num_keep.values()), ratios, self._tfps)
        else:
            kept = [
                indices
                for batch in batches
                for indices in self._select_fixed(batch, num_keep, config.selector)
            ]
        return [
            self._views.to_picture_indices(camera, indices)
            for camera, indices in zip(cameras, kept, strict=True)
        ]

    def _count(
        self, cameras: Sequence[str], missing: Sequence[str], config: DriveConfig
    ) -> dict[str, int]:
        everyone = (*cameras, *missing)
        totals = [self._views.count_tokens(camera) for camera in everyone]
        ratios = [config.retention_ratio_of(camera) for camera in everyone]
        counts = count_kept(totals, ratios, stitched=self._views.stitched)
        present = slice(len(cameras))
        shared = share_out(counts[present], totals[present], sum(counts[len(cameras) :]))
        return dict(zip(cameras, shared, strict=True))

    def _select_fixed(
        self, batch: ViewBatch, num_keep: dict[str, int], method: str
    ) -> list[Tensor]:
        key = (method, batch.grid)
        if key not in self._selectors:
            self._selectors[key] = make_selector(*key)
        counts = [num_keep[camera] for camera in batch.cameras]
        return self._selectors[key].select(batch.states, counts)
