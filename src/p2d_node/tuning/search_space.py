"""The search space: converts the parameters of a trial to a retention ratio per camera.

There are two spaces: a ratio per camera within bounds, as published; or, for a fixed total of
tokens, a share per camera of that total. Every point of both is valid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
import math
import random

from p2d_node.config import RETENTION_RATIO
from p2d_node.errors import ConfigError
from p2d_node.token_selection import count_kept, num_keep_from_retention

PUBLISHED_BOUNDS = (0.1, 1.0)
"""Bounds of each ratio in the paper's search space."""

NUM_UNIFORM_RATIOS = 10
"""Number of ratios of the uniform baseline if no total is fixed."""

GRID_LEVELS = (2, 3, 5)
"""Levels per camera of the grids, coarse to fine; each contains the one before."""

LEAST_SHARE = 1e-3
"""Lower bound of a share: if all shares were 0, the split would be undefined."""

Params = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """The parameters that a trial chooses.

    Attributes:
        num_tokens: Camera to the number of its visual tokens before pruning.
        min_retention: Smallest ratio of a camera.
        max_retention: Largest ratio of a camera.
        mean_retention: If set, every trial keeps exactly as many tokens as this ratio for all
            cameras would; a trial chooses how they are split.
        stitched: Whether all views share one picture, whose tokens are counted together.
    """

    num_tokens: Mapping[str, int]
    min_retention: float = PUBLISHED_BOUNDS[0]
    max_retention: float = PUBLISHED_BOUNDS[1]
    mean_retention: float | None = None
    stitched: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        low, high = self.min_retention, self.max_retention
        lowest, highest = RETENTION_RATIO.minimum, RETENTION_RATIO.maximum
        if lowest is None or highest is None or not lowest <= low <= high <= highest:
            raise ConfigError(
                f'min_retention, max_retention: got {low:g} and {high:g}, allowed: '
                f'{lowest:g} to {highest:g}, the first not above the second'
            )
        mean = self.mean_retention
        if mean is not None and not low <= mean <= high:
            raise ConfigError(
                f'mean_retention: got {mean:g}, allowed: {low:g} to {high:g}, from '
                'min_retention to max_retention'
            )

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of each parameter."""
        if self.mean_retention is not None:
            return 0.0, 1.0
        return self.min_retention, self.max_retention

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the parameters, one per camera."""
        return tuple(self.num_tokens)

    def ratios(self, params: Mapping[str, float]) -> dict[str, float]:
        """Return camera to retention ratio: the parameters themselves, or the split by shares."""
        if self.mean_retention is None:
            return {camera: params[camera] for camera in self.cameras}
        kept = self.split(params, self.tokens_kept_at(self.mean_retention))
        return {camera: ratio_of(kept[camera], self.num_tokens[camera]) for camera in self.cameras}

    def tokens_kept(self, ratios: Mapping[str, float]) -> dict[str, int]:
        """Return camera to number of kept tokens."""
        totals, given = list(self.num_tokens.values()), [ratios[c] for c in self.cameras]
        counts = count_kept(totals, given, stitched=self.stitched)
        return dict(zip(self.cameras, counts, strict=True))

    def tokens_kept_at(self, retention_ratio: float) -> int:
        """Return the total of kept tokens with one ratio for all cameras."""
        return sum(self.tokens_kept(dict.fromkeys(self.cameras, retention_ratio)).values())

    def uniform_ratios(self, num_tokens: int) -> dict[str, float]:
        """Return the ratios of the most even split of `num_tokens` kept tokens."""
        kept = self.split(dict.fromkeys(self.cameras, 1.0), num_tokens)
        return {camera: ratio_of(kept[camera], self.num_tokens[camera]) for camera in self.cameras}

    def split(self, shares: Mapping[str, float], budget: int) -> dict[str, int]:
        """Split `budget` kept tokens: each camera gets its minimum, and its share of the rest.

        What exceeds the maximum of a camera goes to the others by their shares (water filling).
        Tokens left over by rounding go to the largest fractions.
        """
        least = {c: num_keep_from_retention(n, self.min_retention) for c, n in self._items()}
        most = {c: num_keep_from_retention(n, self.max_retention) for c, n in self._items()}
        weights = {c: max(shares[c], LEAST_SHARE) * n for c, n in self._items()}
        room = {c: most[c] - least[c] for c in self.cameras}
        extra = _fill(weights, room, budget - sum(least.values()))
        return {c: least[c] + extra[c] for c in self.cameras}

    def _items(self) -> Iterator[tuple[str, int]]:
        yield from self.num_tokens.items()

    def uniform_plan(self) -> list[Params]:
        """Return the points of the uniform baseline: one ratio for all cameras."""
        if self.mean_retention is not None:
            return [dict.fromkeys(self.cameras, 1.0)]
        low, high = self.bounds
        count = NUM_UNIFORM_RATIOS if high > low else 1
        steps = [low + (high - low) * i / max(1, count - 1) for i in range(count)]
        return [dict.fromkeys(self.cameras, ratio) for ratio in steps]

    def grid_plan(self, seed: int, at_least: int) -> list[Params]:
        """Return the points of nested grids, coarse to fine, each grid in a shuffled order.

        Points that keep as many tokens per camera as an earlier one are left out. The result has
        fewer than `at_least` points if the finest grid has no more. A longer plan begins with the
        shorter one.
        """
        low, high = self.bounds
        points: list[Params] = []
        seen: set[tuple[int, ...]] = set()
        for levels in GRID_LEVELS:
            steps = [low + (high - low) * i / (levels - 1) for i in range(levels)]
            grid = [self._point(values) for values in product(steps, repeat=len(self.cameras))]
            random.Random(seed).shuffle(grid)
            for point in grid:
                key = tuple(self.tokens_kept(self.ratios(point)).values())
                if key not in seen:
                    seen.add(key)
                    points.append(point)
            if len(points) >= at_least:
                break
        return points

    def _point(self, values: Sequence[float]) -> Params:
        return dict(zip(self.cameras, values, strict=True))


def _fill(weights: Mapping[str, float], room: Mapping[str, int], amount: int) -> dict[str, int]:
    """Divide `amount` by weight into whole units; none gets more than its room."""
    level: dict[str, float] = {}
    left = float(max(0, min(amount, sum(room.values()))))
    open_ = set(weights)
    while open_:
        scale = left / sum(weights[name] for name in open_)
        full = {name for name in open_ if scale * weights[name] >= room[name]}
        level |= {name: float(room[name]) for name in full}
        if not full:
            level |= {name: scale * weights[name] for name in open_}
            break
        left -= sum(room[name] for name in full)
        open_ -= full
    return _round(level, weights, round(sum(level.values())))


def _round(level: Mapping[str, float], order: Mapping[str, float], total: int) -> dict[str, int]:
    whole = {name: math.floor(level[name] + 1e-9) for name in order}
    by_fraction = sorted(order, key=lambda name: whole[name] - level[name])
    for name in by_fraction[: total - sum(whole.values())]:
        whole[name] += 1
    return whole


def ratio_of(num_keep: int, num_tokens: int) -> float:
    """Return a short retention ratio that keeps exactly `num_keep` of `num_tokens` tokens."""
    for digits in range(4, 16):
        scale = 10.0**digits
        ratio = math.ceil(num_keep / num_tokens * scale) / scale
        ratio = max(min(ratio, 1.0), RETENTION_RATIO.minimum or 0.0)
        if num_keep_from_retention(num_tokens, ratio) == num_keep:
            return ratio
    return num_keep / num_tokens
