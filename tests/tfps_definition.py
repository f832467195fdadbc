"""A slow float64 implementation of the T-FPS formula, and difficult inputs."""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np
import torch
from torch import Tensor

TIE_TOLERANCE = 2.0**-45
"""Distances within it count as equal, because float64 rounds."""


def tfps_by_definition(tokens: Tensor, num_keep: int) -> list[int]:
    """Picks of one view [tokens, hidden], in their order."""
    distance = [[_distance(a, b) for b in tokens.tolist()] for a in tokens.tolist()]
    indices = range(len(tokens))
    if len(tokens) == 1:
        return [0]
    isolation = [min(distance[i][j] for j in indices if j != i) for i in indices]
    picks = [_first_largest(isolation, indices)]
    while len(picks) < num_keep:
        rest = [j for j in indices if j not in picks]
        to_picks = [min(distance[s][j] for s in picks) for j in rest]
        picks.append(_first_largest(to_picks, rest))
    return picks


def _distance(a: list[float], b: list[float]) -> float:
    """1 - cosine; the cosine with a zero vector is 0."""
    length = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
    if length == 0.0:
        return 1.0
    return 1.0 - math.fsum(x * y for x, y in zip(a, b, strict=True)) / length


def _first_largest(values: list[float], indices: range | list[int]) -> int:
    largest = max(values)
    return next(
        i for i, value in zip(indices, values, strict=True) if value >= largest - TIE_TOLERANCE
    )


def kept_by_definition(visual_tokens: Tensor, num_keep: list[int]) -> list[list[int]]:
    """Kept indices per view, ascending."""
    return [
        sorted(tfps_by_definition(tokens, count))
        for tokens, count in zip(visual_tokens, num_keep, strict=True)
    ]


def assert_every_pick_is_best(order: Tensor, tokens: Tensor, tolerance: float) -> None:
    """Check in float64 that each pick is within `tolerance` of the farthest token.

    Args:
        order: Int64 [picks].
        tokens: Float [tokens, hidden].
        tolerance: Allowed difference to the distance of the farthest token.
    """
    unit = torch.nn.functional.normalize(tokens.double(), dim=-1)
    distance = (1.0 - unit @ unit.T).fill_diagonal_(torch.inf)
    to_picks = distance.amin(dim=1)
    for step, pick in enumerate(order.tolist()):
        assert to_picks[pick] >= to_picks.max() - tolerance
        to_picks = torch.minimum(to_picks, distance[pick]) if step else distance[pick].clone()
        to_picks[order[: step + 1]] = -torch.inf


def random_tokens(rng: np.random.Generator, shape: tuple[int, int, int]) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def clustered_tokens(rng: np.random.Generator, shape: tuple[int, int, int]) -> Tensor:
    views, tokens, hidden = shape
    centres = rng.standard_normal((views, 5, hidden))
    chosen = rng.integers(0, 5, tokens)
    noise = 10.0 ** -rng.uniform(0.5, 3.0, (1, tokens, 1)) * rng.standard_normal(shape)
    return torch.from_numpy((centres[:, chosen] + noise).astype(np.float32))


def duplicated_tokens(rng: np.random.Generator, shape: tuple[int, int, int]) -> Tensor:
    """Few distinct tokens, many bit-identical copies."""
    tokens = random_tokens(rng, shape)
    return tokens[:, rng.integers(0, max(1, shape[1] // 3), shape[1])]


def duplicated_integers(rng: np.random.Generator, shape: tuple[int, int, int]) -> Tensor:
    """Copies with integer features: float32 sums are exact in any order, so that copies tie."""
    tokens = rng.integers(-50, 51, shape).astype(np.float32)
    return torch.from_numpy(tokens)[:, rng.integers(0, max(1, shape[1] // 3), shape[1])]


def scaled_copies(rng: np.random.Generator, shape: tuple[int, int, int]) -> Tensor:
    """Copies in float64 that differ only in their norm: their distance is 0."""
    scale = rng.uniform(0.1, 10.0, (shape[0], shape[1], 1))
    return duplicated_tokens(rng, shape).double() * torch.from_numpy(scale)


def nearly_tied_tokens(rng: np.random.Generator, shape: tuple[int, int, int]) -> Tensor:
    """Clusters whose tokens differ in float64 cosines, but not in float32 cosines."""
    views, tokens, hidden = shape
    centres = rng.standard_normal((views, 3, hidden))
    noise = 1e-4 * rng.standard_normal(shape)
    return torch.from_numpy((centres[:, rng.integers(0, 3, tokens)] + noise).astype(np.float32))


def small_integers(rng: np.random.Generator, shape: tuple[int, int, int]) -> Tensor:
    """Many exact ties and zero vectors."""
    return torch.from_numpy(rng.integers(-1, 2, shape).astype(np.float32))


INPUTS: dict[str, Callable[[np.random.Generator, tuple[int, int, int]], Tensor]] = {
    'random': random_tokens,
    'clustered': clustered_tokens,
    'duplicated': duplicated_tokens,
    'scaled copies': scaled_copies,
    'nearly tied': nearly_tied_tokens,
    'small integers': small_integers,
}
