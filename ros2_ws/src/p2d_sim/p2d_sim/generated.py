"""A scenario comes in; its camera images go out as records for a bag."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from p2d_node.bags.records import BagImage
from p2d_node.units import NS_PER_S

from p2d_sim.cameras import FULL_HEIGHT_PX, FULL_WIDTH_PX
from p2d_sim.sweeps import FIRST_STAMP_S, to_jpeg, World


def generate_images(
    num_sweeps: int,
    *,
    period_ms: float = 1000.0 / 12.0,
    height: int = FULL_HEIGHT_PX,
    width: int = FULL_WIDTH_PX,
    seed: int = 0,
    scenario: str = 'lead-brakes',
) -> Iterator[BagImage]:
    """Yield the images of `num_sweeps` sweeps in the order of their capture stamps.

    The first sweep starts at `FIRST_STAMP_S`, seconds since the epoch.

    Args:
        num_sweeps: Number of sweeps.
        period_ms: Time between two sweeps.
        height: Of the images, pixels.
        width: Of the images, pixels.
        seed: Of the first run of the scenario.
        scenario: One of `SCENARIOS`.

    Raises:
        ConfigError: No such scenario, or seed or size out of range.
    """
    world = World(scenario, seed, height=height, width=width)
    for sweep in islice(world.sweeps(period_ms), num_sweeps):
        for exposure, time_s in sweep:
            yield BagImage(
                camera=exposure.camera,
                stamp_ns=FIRST_STAMP_S * NS_PER_S + round(time_s * NS_PER_S),
                jpeg=to_jpeg(world.view(exposure.camera, time_s).pixels),
                height=height,
                width=width,
                camera_matrix=world.camera_matrix(exposure.camera),
            )
