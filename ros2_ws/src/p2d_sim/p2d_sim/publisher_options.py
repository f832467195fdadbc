"""What the six live cameras publish, checked."""

from __future__ import annotations

from dataclasses import dataclass

from p2d_node.errors import ConfigError

from p2d_sim.cameras import FULL_HEIGHT_PX, FULL_WIDTH_PX
from p2d_sim.limits import check_seed, check_size

TRANSPORTS = ('compressed', 'raw')


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherOptions:
    """What is published, at which rate, and with which faults.

    Attributes:
        scenario: One of `SCENARIOS`.
        seed: Seed of surroundings, delays and losses.
        rate_hz: Sweeps per second.
        transport: `compressed` (JPEG) or `raw` (bgr8).
        height: Of the images, pixels.
        width: Of the images, pixels.
        jitter_ms: Largest delay of a frame; delays are uniform. Stamps are those of the exposure.
        loss: Probability that a frame is not sent.
        duration_s: Time after which publishing stops; None: never.
    """

    scenario: str = 'lead-brakes'
    seed: int = 0
    rate_hz: float = 12.0
    transport: str = 'compressed'
    height: int = FULL_HEIGHT_PX
    width: int = FULL_WIDTH_PX
    jitter_ms: float = 0.0
    loss: float = 0.0
    duration_s: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check_seed(self.seed)
        check_size(self.height, self.width)
        if not 0.1 <= self.rate_hz <= 60.0:
            raise ConfigError(f'rate_hz: got {self.rate_hz:g}, allowed: 0.1 to 60 Hz')
        if self.transport not in TRANSPORTS:
            raise ConfigError(
                f'transport: got {self.transport!r}, allowed: {", ".join(TRANSPORTS)}'
            )
        if not 0.0 <= self.jitter_ms <= 1000.0:
            raise ConfigError(f'jitter_ms: got {self.jitter_ms:g}, allowed: 0 to 1000')
        if not 0.0 <= self.loss < 1.0:
            raise ConfigError(f'loss: got {self.loss:g}, allowed: 0 to below 1')
        if self.duration_s is not None and not self.duration_s > 0.0:  # also refuses nan
            raise ConfigError(f'duration_s: got {self.duration_s:g}, allowed: above 0 seconds')
