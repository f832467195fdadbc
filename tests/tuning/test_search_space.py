"""Splits keep the total, stay within bounds, and are what a parameter file can say."""

from hypothesis import given
from hypothesis import strategies as st
from p2d_node.errors import ConfigError
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.token_selection import num_keep_from_retention
from p2d_node.tuning.search_space import ratio_of, SearchSpace
import pytest

TOKENS = dict.fromkeys(NUSCENES_CAMERAS, 196)
SIZES = st.lists(st.integers(5, 800), min_size=1, max_size=6)


@given(SIZES, st.data())
def test_every_split_keeps_the_total_within_the_bounds(sizes, data):
    low = data.draw(st.floats(0.001, 0.5))
    high = data.draw(st.floats(low, 1.0))
    mean = data.draw(st.floats(low, high))
    num_tokens = {f'CAM_{i}': size for i, size in enumerate(sizes)}
    shares = {camera: data.draw(st.floats(0.0, 1.0)) for camera in num_tokens}
    space = SearchSpace(
        num_tokens=num_tokens, min_retention=low, max_retention=high, mean_retention=mean
    )
    kept = space.tokens_kept(space.ratios(shares))
    total = sum(num_keep_from_retention(size, mean) for size in sizes)
    assert sum(kept.values()) == total == space.tokens_kept_at(mean)
    for camera, size in num_tokens.items():
        least, most = (num_keep_from_retention(size, ratio) for ratio in (low, high))
        assert least <= kept[camera] <= most


def test_a_camera_gets_more_the_larger_its_share():
    space = SearchSpace(num_tokens=TOKENS, min_retention=0.025, mean_retention=0.1)
    shares = dict(zip(TOKENS, (1.0, 0.5, 0.5, 0.25, 0.0, 0.0), strict=True))
    kept = list(space.tokens_kept(space.ratios(shares)).values())
    # 114 tokens: 4 for each camera, and the other 90 as 4 : 2 : 2 : 1.
    assert kept == [44, 24, 24, 14, 4, 4]


def test_what_a_full_camera_cannot_take_goes_to_the_others():
    space = SearchSpace(
        num_tokens=TOKENS, min_retention=0.05, max_retention=0.2, mean_retention=0.1
    )
    shares = dict(zip(TOKENS, (1.0, 0.1, 0.1, 0.0, 0.0, 0.0), strict=True))
    kept = list(space.tokens_kept(space.ratios(shares)).values())
    assert kept[0] == 39
    assert kept[1] == kept[2] > kept[3]
    assert sum(kept) == 114


def test_equal_shares_are_the_uniform_ratio():
    space = SearchSpace(num_tokens=TOKENS, min_retention=0.025, mean_retention=0.1)
    (point,) = space.uniform_plan()
    assert list(space.tokens_kept(space.ratios(point)).values()) == [19] * 6
    assert set(space.uniform_ratios(114).values()) == {ratio_of(19, 196)}


def test_an_uneven_total_is_split_as_evenly_as_it_goes():
    space = SearchSpace(num_tokens=TOKENS)
    kept = space.tokens_kept(space.uniform_ratios(117 + 19 * 6))
    assert sorted(kept.values()) == [38, 38, 38, 39, 39, 39]


def test_without_a_total_the_parameters_are_the_ratios():
    space = SearchSpace(num_tokens=TOKENS)
    params = dict.fromkeys(TOKENS, 0.3) | {'CAM_FRONT': 0.7}
    assert space.ratios(params) == params
    assert [p['CAM_FRONT'] for p in space.uniform_plan()] == pytest.approx(
        [0.1 * i for i in range(1, 11)]
    )


@given(st.integers(1, 5000), st.data())
def test_a_short_ratio_keeps_the_same_tokens(num_tokens, data):
    count = data.draw(st.integers(1, num_tokens))
    ratio = ratio_of(count, num_tokens)
    assert num_keep_from_retention(num_tokens, ratio) == count
    assert num_tokens > 1000 or len(f'{ratio}') <= 6


def test_a_longer_grid_begins_with_the_shorter_one_and_repeats_nothing():
    space = SearchSpace(num_tokens=TOKENS)
    coarse, fine = space.grid_plan(0, 64), space.grid_plan(0, 65)
    assert len(coarse) == 64
    assert len(fine) == 3**6
    assert fine[:64] == coarse
    assert len({tuple(p.values()) for p in fine}) == len(fine)


def test_a_grid_of_shares_leaves_out_what_means_the_same_split():
    space = SearchSpace(num_tokens=TOKENS, min_retention=0.025, mean_retention=0.1)
    plan = space.grid_plan(0, 64)
    splits = {tuple(space.ratios(point).values()) for point in plan}
    assert len(splits) == len(plan) >= 62  # all-zero and all-one shares are one split


@pytest.mark.parametrize(
    ('bounds', 'reason'),
    [
        ({'min_retention': 0.5, 'max_retention': 0.4}, 'the first not above the second'),
        ({'min_retention': 0.0}, r'allowed: 0\.001 to 1'),
        ({'max_retention': 1.5}, r'allowed: 0\.001 to 1'),
        ({'mean_retention': 0.05}, r'mean_retention: got 0\.05, allowed: 0\.1 to 1'),
    ],
)
def test_bounds_that_cannot_hold_are_refused(bounds, reason):
    with pytest.raises(ConfigError, match=reason):
        SearchSpace(num_tokens=TOKENS, **bounds)
