"""The picks of T-FPS in their order, and adaptive allocation."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError, InferenceError
from p2d_node.token_selection import (
    keep_by_coverage,
    order_tokens,
    select_adaptively,
    select_tokens,
)
import pytest
from tfps_definition import INPUTS, random_tokens, tfps_by_definition
import torch


def tokens_of(num_views: int, num_tokens: int, hidden: int = 8, seed: int = 0) -> torch.Tensor:
    return random_tokens(np.random.default_rng(seed), (num_views, num_tokens, hidden))


def distances_by_definition(tokens: torch.Tensor, picks: list[int]) -> list[float]:
    """Distance of every pick after the first to the nearest pick before it, in float64."""
    length = tokens.double().norm(dim=-1, keepdim=True)
    unit = torch.where(length > 0, tokens.double() / length, 0.0)[picks]
    distance = 1.0 - unit @ unit.T
    return [float(distance[i, :i].min()) for i in range(1, len(picks))]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_order_begins_with_the_picks_of_every_smaller_count(data: st.DataObject):
    kind = data.draw(st.sampled_from(sorted(INPUTS)))
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 20)), 6)
    tokens = INPUTS[kind](np.random.default_rng(data.draw(st.integers(0, 999))), shape)
    order = order_tokens(tokens, shape[1])
    count = data.draw(st.integers(1, shape[1]))
    kept = [view[:count].sort().values.tolist() for view in order.indices]
    assert kept == [indices.tolist() for indices in select_tokens(tokens, [count] * shape[0])]
    assert order_tokens(tokens, count).indices.tolist() == order.indices[:, :count].tolist()


@pytest.mark.parametrize('kind', sorted(INPUTS))
def test_distances_equal_those_of_the_definition(kind: str):
    tokens = INPUTS[kind](np.random.default_rng(3), (2, 24, 10))
    order = order_tokens(tokens, 24)
    for view in range(2):
        picks = tfps_by_definition(tokens[view], 24)
        assert order.indices[view].tolist() == picks
        assert torch.isinf(order.distances[view, 0])
        expected = torch.tensor(distances_by_definition(tokens[view], picks))
        torch.testing.assert_close(
            order.distances[view, 1:], expected.clamp(min=0).float(), atol=2e-6, rtol=0
        )
        assert (order.distances[view].diff()[1:] <= 0).all()


def test_the_budget_goes_to_the_picks_with_the_largest_gain():
    indices = [torch.tensor([5, 1, 3]), torch.tensor([0, 9, 4])]
    distances = [torch.tensor([np.inf, 0.5, 0.1]), torch.tensor([np.inf, 0.4, 0.3])]

    def kept(num_keep: int, weights: tuple[float, float]) -> list[list[int]]:
        found = keep_by_coverage(indices, distances, num_keep, weights)
        return [view.tolist() for view in found]

    assert kept(2, (1.0, 1.0)) == [[5], [0]]
    assert kept(4, (1.0, 1.0)) == [[1, 5], [0, 9]]
    assert kept(5, (1.0, 1.0)) == [[1, 5], [0, 4, 9]]
    assert kept(5, (8.0, 1.0)) == [[1, 3, 5], [0, 9]]
    assert kept(6, (1.0, 1.0)) == [[1, 3, 5], [0, 4, 9]]


def test_the_split_minimises_the_largest_distance_of_the_sweep():
    """All other splits of the same budget are tried."""
    tokens = tokens_of(2, 12, hidden=3, seed=4)
    tokens[1] = tokens[1] * 0.1 + torch.tensor([4.0, 0.0, 0.0])  # a view with little variety
    chosen = select_adaptively([tokens], [4, 4], [1.0, 1.0])
    order = order_tokens(tokens, 12)

    def next_distance(counts: tuple[int, int]) -> float:
        return max(float(order.distances[view, count]) for view, count in enumerate(counts))

    counts = (len(chosen[0]), len(chosen[1]))
    assert sum(counts) == 8
    assert counts[0] > counts[1]
    assert next_distance(counts) == min(next_distance((n, 8 - n)) for n in range(1, 8))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_view_keeps_a_token_and_the_budget_is_used_up(data: st.DataObject):
    num_views, num_tokens = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 16))
    counts = st.lists(st.integers(1, num_tokens), min_size=num_views, max_size=num_views)
    num_keep = data.draw(counts)
    kind = data.draw(st.sampled_from(sorted(INPUTS)))
    tokens = INPUTS[kind](np.random.default_rng(1), (num_views, num_tokens, 5))
    weights = data.draw(st.lists(st.floats(0.01, 1.0), min_size=num_views, max_size=num_views))
    kept = select_adaptively([tokens], num_keep, weights)
    assert sum(len(view) for view in kept) == sum(num_keep)
    for view, indices in enumerate(kept):
        assert indices.tolist() == select_tokens(tokens, [len(indices)] * num_views)[view].tolist()


def test_views_of_different_sizes_share_a_budget():
    regions = [tokens_of(1, 6, seed=1), tokens_of(1, 20, seed=2)]
    kept = select_adaptively(regions, [3, 9], [1.0, 1.0])
    assert sum(len(view) for view in kept) == 12
    assert len(kept[0]) <= 6


def test_a_count_out_of_range_is_refused():
    for count in (0, 9):
        with pytest.raises(InferenceError, match=f'got {count}, allowed: 1 to 8'):
            order_tokens(tokens_of(2, 8), count)


def test_adaptive_allocation_requires_tfps():
    assert replace(DriveConfig(), allocation='adaptive').selector == 'tfps'
    with pytest.raises(ConfigError, match="adaptive with selector 'grid', allowed: with tfps"):
        replace(DriveConfig(), allocation='adaptive', selector='grid')
