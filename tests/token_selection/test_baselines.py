"""The selection methods besides T-FPS, the map of selectors, and retention ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError
from p2d_node.token_selection import make_selector, num_keep_from_retention, select_tokens
from p2d_node.token_selection.factory import SELECTORS
from p2d_node.token_selection.grid import even_grid, GridSelector
from p2d_node.token_selection.random_ import RandomSelector
import pytest
from tfps_definition import random_tokens, tfps_by_definition
import torch
from torch import Tensor


def tokens_of(num_views: int, num_tokens: int, hidden: int = 8, seed: int = 0) -> torch.Tensor:
    return random_tokens(np.random.default_rng(seed), (num_views, num_tokens, hidden))


@pytest.mark.parametrize('method', ['tfps', 'random', 'grid', 'dart'])
def test_every_method_keeps_the_requested_number_per_view(method: str):
    kept = select_tokens(tokens_of(3, 81), [8, 81, 1], method)
    assert [len(indices) for indices in kept] == [8, 81, 1]
    for indices in kept:
        assert indices.dtype == torch.int64
        assert (indices.diff() > 0).all()
        assert 0 <= indices.min() <= indices.max() < 81


def test_divprune_searches_all_views_at_once():
    tokens = tokens_of(3, 16)
    kept = select_tokens(tokens, [4, 5, 6], 'divprune')
    picks = tfps_by_definition(tokens.flatten(0, 1), 15)
    expected = [sorted(p % 16 for p in picks if p // 16 == view) for view in range(3)]
    assert [indices.tolist() for indices in kept] == expected


def test_divprune_may_leave_a_view_empty():
    tokens = tokens_of(2, 16)
    tokens[1] = tokens[0, :1]
    kept = select_tokens(tokens, [2, 2], 'divprune')
    assert [len(indices) for indices in kept] == [4, 0]


def test_random_choice_depends_only_on_the_seed():
    first, second = tokens_of(2, 50, seed=1), tokens_of(2, 50, seed=2)
    chosen = [RandomSelector(seed=3).select(t, [9, 9]) for t in (first, second)]
    other = RandomSelector(seed=4).select(first, [9, 9])
    assert [a.tolist() for a in chosen[0]] == [b.tolist() for b in chosen[1]]
    assert chosen[0][0].tolist() != other[0].tolist()
    assert chosen[0][0].tolist() != chosen[0][1].tolist()


@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_a_grid_has_the_requested_number_of_distinct_positions(
    height: int, width: int, data: st.DataObject
):
    count = data.draw(st.integers(1, height * width))
    positions = even_grid(height, width, count)
    assert len(set(positions)) == count
    assert positions == sorted(positions)
    assert 0 <= positions[0] <= positions[-1] < height * width


def test_a_grid_is_even_in_both_directions():
    positions = torch.tensor(even_grid(27, 27, 81))
    assert positions.div(27, rounding_mode='floor').unique().tolist() == list(range(1, 27, 3))
    assert (positions % 27).unique().tolist() == list(range(1, 27, 3))


def test_a_grid_may_have_another_shape_than_a_square():
    kept = GridSelector(grid_size=(2, 8)).select(tokens_of(1, 16), [2])
    assert kept[0].tolist() == [10, 14]
    with pytest.raises(ConfigError, match='got 3 x 5, allowed: a product of 16'):
        GridSelector(grid_size=(3, 5)).select(tokens_of(1, 16), [2])


def test_an_unknown_method_is_refused_with_the_allowed_ones():
    with pytest.raises(
        ConfigError, match="got 'best', allowed: tfps, tfps_motion, random, grid, divprune, dart"
    ):
        make_selector('best')


def test_fastv_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r'fastv.*not available.*attention.*allowed: tfps'):
        select_tokens(tokens_of(1, 4), [2], 'fastv')


def test_a_program_may_add_a_selector(monkeypatch: pytest.MonkeyPatch):
    grid_sizes = []

    class FirstTokens:
        def select(self, visual_tokens: Tensor, num_keep: Sequence[int]) -> list[Tensor]:
            return [torch.arange(count) for count in num_keep]

    def make_first_tokens(grid_size: tuple[int, int] | None) -> FirstTokens:
        grid_sizes.append(grid_size)
        return FirstTokens()

    monkeypatch.setitem(SELECTORS, 'first', make_first_tokens)
    kept = select_tokens(tokens_of(2, 12), [3, 1], 'first', grid_size=(3, 4))
    assert [indices.tolist() for indices in kept] == [[0, 1, 2], [0]]
    assert grid_sizes == [(3, 4)]


def test_the_configuration_offers_all_selectors():
    (selector,) = [item for item in fields(DriveConfig) if item.name == 'selector']
    assert selector.metadata['option'].choices == tuple(SELECTORS)


@pytest.mark.parametrize(
    ('num_tokens', 'retention_ratio', 'num_keep'),
    [(729, 0.10, 72), (729, 0.25, 182), (100, 0.29, 29), (256, 0.001, 1), (729, 1.0, 729)],
)
def test_a_retention_ratio_becomes_a_count_by_rounding_down(
    num_tokens: int, retention_ratio: float, num_keep: int
):
    assert num_keep_from_retention(num_tokens, retention_ratio) == num_keep


@pytest.mark.parametrize('retention_ratio', [0.0, -0.1, 1.01, float('nan')])
def test_a_retention_ratio_outside_its_range_is_refused(retention_ratio: float):
    with pytest.raises(ConfigError, match='allowed: above 0 up to 1'):
        num_keep_from_retention(729, retention_ratio)
