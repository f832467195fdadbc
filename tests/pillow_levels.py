"""Compares pixel_values with those of an image processor that resizes with Pillow."""

from __future__ import annotations

import torch

MAX_LEVELS = 2
"""Of 255. Where a picture shrinks it is one; where it grows, two roundings may add up."""

MAX_SHARE, MAX_SHARE_OF_TALL = 0.01, 0.25
"""Share of the values that may differ; measured were up to 0.9 %. Pillow filters the columns of a
tall frame before its rows, torch the rows of every frame; the other order rounds differently."""


def assert_close_to_pillow(
    actual: torch.Tensor,
    expected: torch.Tensor,
    std: tuple[float, float, float],
    *,
    tall: bool = False,
) -> None:
    """Assert that levels are off by at most `MAX_LEVELS`, and nearly all not at all.

    Args:
        actual: pixel_values, float [..., 3, height, width].
        expected: Those of the reference.
        std: By which channels were divided.
        tall: Whether a frame that is higher than wide was stretched.
    """
    assert actual.shape == expected.shape
    levels = (actual - expected).abs() * 255 * torch.tensor(std).view(3, 1, 1)
    assert levels.max() < MAX_LEVELS + 0.001
    assert (levels > 0.001).float().mean() < (MAX_SHARE_OF_TALL if tall else MAX_SHARE)
