"""Checks of values that several parts of the simulator share."""

from __future__ import annotations

from p2d_node.errors import ConfigError

SIDES_PX = (32, 4096)
"""Shortest and longest side of an image."""


def check_seed(seed: int) -> None:
    """Check a seed.

    Raises:
        ConfigError: The seed is negative, which numpy's generators do not accept.
    """
    if seed < 0:
        raise ConfigError(f'seed: got {seed}, allowed: 0 or more')


def check_size(height: int, width: int) -> None:
    """Check the size of images, pixels.

    Raises:
        ConfigError: A side is too short to show anything, or longer than any camera's.
    """
    low, high = SIDES_PX
    if min(height, width) < low or max(height, width) > high:
        raise ConfigError(f'size: got {width}x{height}, allowed: {low} to {high} pixels a side')
