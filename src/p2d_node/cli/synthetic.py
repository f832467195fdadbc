"""Camera images drawn by p2d_sim, a package of the same workspace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import importlib
from typing import Any

from p2d_node.bags.records import BagImage
from p2d_node.errors import ConfigError


def draw_images(scenario: str, num_sweeps: int, **options: Any) -> Iterator[BagImage]:
    """Yield the images of a scenario, by capture time.

    Args:
        scenario: Name of the scenario, such as `lead-brakes`.
        num_sweeps: Number of sweeps.
        options: Arguments of p2d_sim's `generate_images`, such as `seed` and `period_ms`.

    Raises:
        ConfigError: p2d_sim is not installed, or has no such scenario.
    """
    try:
        generated = importlib.import_module('p2d_sim.generated')
    except ImportError as err:
        raise ConfigError(
            f'drawn images need the package p2d_sim, which is not installed: {err}; build ros2_ws'
        ) from err
    draw: Callable[..., Iterator[BagImage]] = generated.generate_images
    return draw(num_sweeps, scenario=scenario, **options)
