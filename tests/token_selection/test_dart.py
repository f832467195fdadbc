"""The baseline DART, against a plain implementation of its rule."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from p2d_node.errors import InferenceError
from p2d_node.token_selection import select_tokens
from p2d_node.token_selection.dart import DartSelector, NUM_PIVOTS, STEPS
import pytest
from tfps_definition import INPUTS, random_tokens
import torch
from torch import Tensor

NUM_TOKENS = 24


def dart_by_definition(tokens: Tensor, num_keep: int) -> list[int]:
    """Kept indices of one view [tokens, hidden], ascending."""
    rows = tokens.double().tolist()
    indices = range(len(rows))
    by_norm = sorted(indices, key=lambda i: (-math.fsum(abs(x) for x in rows[i]), i))
    pivots = by_norm[: min(NUM_PIVOTS, num_keep)]
    kept = list(pivots)
    for number, pivot in enumerate(pivots):
        share = math.ceil((num_keep - len(kept)) / (len(pivots) - number))
        others = [i for i in indices if i not in kept]
        others.sort(key=lambda i: (round(_cosine(rows[pivot], rows[i]) * STEPS), i))
        kept += others[:share]
    return sorted(kept)


def _cosine(a: list[float], b: list[float]) -> float:
    """Return 0 with a zero vector."""
    length = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0


def as_lists(kept: list[Tensor]) -> list[list[int]]:
    return [indices.tolist() for indices in kept]


@settings(deadline=None)
@given(st.sampled_from(sorted(INPUTS)), st.integers(0, 99), st.data())
def test_the_kept_tokens_are_those_of_the_definition(kind: str, seed: int, data: st.DataObject):
    tokens = INPUTS[kind](np.random.default_rng(seed), (3, NUM_TOKENS, 8))
    num_keep = data.draw(st.lists(st.integers(1, NUM_TOKENS), min_size=3, max_size=3))
    expected = [dart_by_definition(v, n) for v, n in zip(tokens, num_keep, strict=True)]
    assert as_lists(select_tokens(tokens, num_keep, 'dart')) == expected


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_values_of_every_number_format_are_taken_as_they_are(dtype: torch.dtype):
    tokens = random_tokens(np.random.default_rng(0), (2, NUM_TOKENS, 16)).to(dtype)
    kept = select_tokens(tokens, [9, 20], 'dart')
    assert all(indices.dtype == torch.int64 for indices in kept)
    assert as_lists(kept) == [dart_by_definition(tokens[0], 9), dart_by_definition(tokens[1], 20)]


def test_each_view_has_its_own_pivots_and_count():
    tokens = random_tokens(np.random.default_rng(1), (3, NUM_TOKENS, 8))
    tokens[0] *= 100.0  # were the pivots those of all views, they would all be here
    together = select_tokens(tokens, [5, 6, 7], 'dart')
    alone = [select_tokens(tokens[v : v + 1], [5 + v], 'dart')[0] for v in range(3)]
    assert as_lists(together) == as_lists(alone)


def test_few_tokens_are_the_largest_ones():
    tokens = torch.eye(8)[None] * torch.tensor([1.0, 5, 2, 8, 3, 7, 4, 6])[:, None]
    assert as_lists(select_tokens(tokens, [1], 'dart')) == [[3]]
    assert as_lists(select_tokens(tokens, [3], 'dart')) == [[3, 5, 7]]


def test_copies_of_a_pivot_are_kept_last():
    tokens = torch.tensor([[9.0, 0], [8, 0], [7, 0], [6, 0], [0, 1], [1, 0], [1, 1]])[None]
    assert as_lists(select_tokens(tokens, [6], 'dart')) == [[0, 1, 2, 3, 4, 6]]


def test_ties_go_to_the_lowest_index():
    tokens = torch.ones(1, 12, 4)
    assert as_lists(select_tokens(tokens, [7], 'dart')) == [list(range(7))]


def test_all_tokens_are_kept_without_reading_them_and_the_count_may_not_exceed_them():
    tokens = torch.full((2, 5, 4), torch.nan)
    assert as_lists(select_tokens(tokens, [5, 5], 'dart')) == [list(range(5))] * 2
    for count in (0, 6):
        with pytest.raises(InferenceError, match=f'got {count}, allowed: 1 to 5'):
            select_tokens(tokens, [5, count], 'dart')


@pytest.mark.parametrize('value', [torch.nan, torch.inf, 1e30])
def test_a_token_that_is_not_usable_is_named(value: float):
    tokens = torch.ones(2, 8, 4)
    tokens[1, 3, 2] = value
    with pytest.raises(InferenceError, match=r'visual_tokens\[1, 3\]'):
        select_tokens(tokens, [4, 4], 'dart')


def test_a_selector_keeps_nothing_from_sweep_to_sweep():
    first, second = (
        random_tokens(np.random.default_rng(seed), (2, NUM_TOKENS, 8)) for seed in (0, 1)
    )
    selector = DartSelector()
    before = as_lists(selector.select(first, [6, 6]))
    selector.select(second, [9, 3])
    assert as_lists(selector.select(first, [6, 6])) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
def test_a_gpu_keeps_the_same_tokens_without_waiting_and_unusable_ones_last():
    tokens = random_tokens(np.random.default_rng(2), (6, 729, 1152)).cuda().bfloat16()
    expected = as_lists(select_tokens(tokens.cpu(), [72] * 6, 'dart'))
    selector = DartSelector()
    selector.select(tokens, [72] * 6)
    torch.cuda.set_sync_debug_mode('error')
    try:
        kept = selector.select(tokens, [72] * 6)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert as_lists(kept) == expected
    tokens[:, 700] = torch.nan
    assert all(700 not in kept for kept in as_lists(selector.select(tokens, [728] * 6)))
