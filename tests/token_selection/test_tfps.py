"""T-FPS on a CPU against its definition, and edge cases of the selector."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from memory import peak_growth_bytes
import numpy as np
from p2d_node.errors import InferenceError
from p2d_node.token_selection import require_finite, select_tokens
from p2d_node.token_selection.base import inverse_norms
from p2d_node.token_selection.tfps import TfpsSelector
from p2d_node.token_selection.tfps_batched import batched_order
from p2d_node.token_selection.tfps_exact import (
    exact_orders,
    PAIR_BUDGET,
    similarity_error,
    similarity_matrices,
)
from p2d_node.token_selection.tfps_motion import MotionTfpsSelector
import pytest
from tfps_definition import (
    assert_every_pick_is_best,
    duplicated_integers,
    INPUTS,
    kept_by_definition,
    tfps_by_definition,
)
import torch


def as_lists(indices: list[torch.Tensor]) -> list[list[int]]:
    return [kept.tolist() for kept in indices]


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_equals_the_float64_definition_for_any_shape_and_count_per_view(data: st.DataObject):
    kind = data.draw(st.sampled_from(sorted(INPUTS)))
    shape = (
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(1, 24)),
        data.draw(st.integers(1, 20)),
    )
    num_keep = data.draw(st.lists(st.integers(1, shape[1]), min_size=shape[0], max_size=shape[0]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    tokens = INPUTS[kind](rng, shape)
    assert as_lists(select_tokens(tokens, num_keep)) == kept_by_definition(tokens, num_keep)


@pytest.mark.parametrize('kind', sorted(INPUTS))
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_equals_the_float64_definition_for_every_dtype(kind: str, dtype: torch.dtype):
    tokens = INPUTS[kind](np.random.default_rng(5), (2, 50, 24)).to(dtype)
    num_keep = [30, 7]
    assert as_lists(select_tokens(tokens, num_keep)) == kept_by_definition(tokens, num_keep)


@pytest.mark.parametrize('kind', sorted(INPUTS))
def test_picks_come_in_the_order_of_the_definition(kind: str):
    tokens = INPUTS[kind](np.random.default_rng(8), (1, 40, 24))
    (order,) = exact_orders(tokens, [39])
    assert order.tolist() == tfps_by_definition(tokens[0], 39)


def test_float32_alone_fails_on_near_ties():
    tokens = INPUTS['nearly tied'](np.random.default_rng(8), (1, 40, 41))
    float32_picks = batched_order(tokens, 20)[0].tolist()
    assert float32_picks != tfps_by_definition(tokens[0], 20)


def test_picks_are_exact_after_the_budget_of_pairs_is_used_up():
    rng = np.random.default_rng(3)
    tokens = INPUTS['duplicated'](rng, (1, 120, 32))
    # After the distinct tokens, every remaining token is a candidate, with all its copies.
    num_distinct = len(tokens[0].unique(dim=0))
    assert num_distinct < 60
    assert (120 - num_distinct) * 2 * 40 > PAIR_BUDGET
    assert as_lists(select_tokens(tokens, [100])) == kept_by_definition(tokens, [100])


def test_reduced_precision_products_set_globally_do_not_change_the_picks():
    tokens = INPUTS['random'](np.random.default_rng(1), (2, 96, 64))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('medium')
    try:
        kept = as_lists(select_tokens(tokens, [20, 20]))
    finally:
        torch.set_float32_matmul_precision(before)
    assert kept == kept_by_definition(tokens, [20, 20])


@pytest.mark.parametrize('hidden', [64, 312, 1152, 4096])
@pytest.mark.parametrize('kind', ['normal', 'positive', 'constant', 'outlier', 'parallel'])
def test_the_error_of_float32_cosines_is_below_its_estimate(hidden: int, kind: str):
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randn(1, 200, hidden, generator=generator)
    if kind == 'positive':
        tokens = tokens.abs() + 1.0
    if kind == 'constant':
        tokens = tokens[:, :, :1].expand_as(tokens).contiguous()
    if kind == 'outlier':
        tokens[:, :, 3] += hidden**0.5
    if kind == 'parallel':
        tokens = tokens[:, :1] * tokens[:, :, :1] + 1e-3 * tokens
    inverse, _ = inverse_norms(tokens)
    similarity = similarity_matrices(tokens, inverse)
    unit = torch.nn.functional.normalize(tokens.double(), dim=-1)
    error = (similarity - unit @ unit.transpose(1, 2)).abs().max()
    assert 0 < error < similarity_error(similarity, inverse, hidden).item()


def test_views_do_not_influence_each_other():
    tokens = INPUTS['clustered'](np.random.default_rng(6), (5, 60, 16))
    num_keep = [3, 60, 17, 1, 59]
    together = select_tokens(tokens, num_keep)
    alone = [select_tokens(tokens[v : v + 1], [k])[0] for v, k in enumerate(num_keep)]
    assert as_lists(together) == as_lists(alone)


@pytest.mark.attack(
    'Weights of a megabyte with so many visual tokens that the similarities of all views take '
    'gigabytes',
    'views with many tokens are searched one after the other, and a view has few enough',
)
@pytest.mark.parametrize('selector', [TfpsSelector(), MotionTfpsSelector()])
def test_views_of_many_tokens_take_the_memory_of_one(selector):
    tokens = torch.randn(6, 5000, 16, generator=torch.Generator().manual_seed(0))
    kept = []
    grown = peak_growth_bytes(lambda: kept.extend(selector.select(tokens, [40, 30, 20, 10, 5, 1])))
    assert grown < 300 << 20
    alone = selector.select(tokens[2:3], [20])
    assert torch.equal(kept[2], alone[0])


def test_keeping_all_returns_all_indices():
    tokens = INPUTS['random'](np.random.default_rng(0), (2, 9, 4))
    assert as_lists(select_tokens(tokens, [9, 9])) == [list(range(9))] * 2


def test_keeping_one_takes_the_most_isolated_token():
    tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [1.0, -0.1]]])
    assert as_lists(select_tokens(tokens, [1])) == [[2]]


def test_equal_tokens_are_taken_from_the_lowest_index_on():
    tokens = torch.ones(1, 30, 8)
    assert as_lists(select_tokens(tokens, [12])) == [list(range(12))]


def test_a_zero_token_is_at_distance_one_from_everything():
    # The zero token is the farthest from its nearest neighbour, so it is picked first.
    tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.2], [0.0, 0.0], [1.0, -0.2]]])
    assert as_lists(select_tokens(tokens, [1])) == [[2]]
    assert as_lists(select_tokens(torch.zeros(1, 6, 3), [4])) == [[0, 1, 2, 3]]


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf'), 1e30])
def test_an_error_names_the_unusable_token(bad: float):
    tokens = torch.ones(3, 10, 4)
    tokens[1, 7, 2] = bad
    with pytest.raises(InferenceError, match=r'visual_tokens\[1, 7\].*check the vision encoder'):
        select_tokens(tokens, [4, 4, 4])
    with pytest.raises(InferenceError, match=r'visual_tokens\[1, 7\]'):
        require_finite(tokens)


def test_require_finite_accepts_finite_tokens():
    require_finite(torch.ones(2, 3, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize('norm', [1e-12, 1e12])
def test_the_norm_of_tokens_does_not_matter(norm: float):
    tokens = INPUTS['random'](np.random.default_rng(0), (1, 40, 8))
    assert as_lists(select_tokens(tokens * norm, [11])) == as_lists(select_tokens(tokens, [11]))


def test_indices_are_ascending_int64_and_need_no_gradient():
    tokens = INPUTS['random'](np.random.default_rng(0), (2, 40, 8)).requires_grad_()
    for kept in select_tokens(tokens, [11, 40]):
        assert kept.dtype == torch.int64
        assert not kept.requires_grad
        assert (kept.diff() > 0).all()


def test_a_strided_input_gives_the_same_indices_and_stays_unchanged():
    whole = INPUTS['random'](np.random.default_rng(0), (3, 40, 16))
    before = whole.clone()
    part = whole[1:, 3:30:2, :8]
    assert as_lists(select_tokens(part, [5, 5])) == as_lists(select_tokens(part.clone(), [5, 5]))
    assert torch.equal(whole, before)


@pytest.mark.parametrize(
    ('tokens', 'num_keep', 'message'),
    [
        (torch.ones(4, 3), [1], r'float32 \[4, 3\], allowed: float \[views, tokens, hidden\]'),
        (torch.ones(1, 4, 3, dtype=torch.int64), [1], 'got torch.int64'),
        (torch.ones(2, 4, 3), [1], 'got 1 counts for 2 views'),
        (torch.ones(2, 4, 3), [1, 0], r'num_keep\[1\]: got 0, allowed: 1 to 4'),
        (torch.ones(2, 4, 3), [5, 1], r'num_keep\[0\]: got 5, allowed: 1 to 4'),
    ],
)
def test_invalid_shapes_and_counts_are_refused(
    tokens: torch.Tensor, num_keep: list[int], message: str
):
    with pytest.raises(InferenceError, match=message):
        select_tokens(tokens, num_keep)


class TestBatchedLoop:
    """`batched_order`, which a CUDA graph captures."""

    @pytest.mark.parametrize('make', [INPUTS['random'], duplicated_integers])
    def test_equals_the_exact_search(self, make: Callable[..., torch.Tensor]):
        tokens = make(np.random.default_rng(11), (3, 64, 48))
        exact = torch.stack(exact_orders(tokens, [40] * 3))
        assert torch.equal(batched_order(tokens, 40), exact)

    @pytest.mark.parametrize('kind', sorted(INPUTS))
    def test_every_pick_is_the_farthest_within_float32_error(self, kind: str):
        tokens = INPUTS[kind](np.random.default_rng(11), (1, 64, 48))
        assert_every_pick_is_best(batched_order(tokens, 60)[0], tokens[0], tolerance=2e-6)

    def test_picks_unusable_tokens_last(self):
        tokens = INPUTS['random'](np.random.default_rng(0), (1, 20, 8))
        tokens[0, 3, 1] = float('nan')
        tokens[0, 9, 0] = float('inf')
        order = batched_order(tokens, 19)[0].tolist()
        assert order[18] == 3
        assert 9 not in order
        others = [i for i in range(20) if i not in {3, 9}]
        assert sorted(order[:18]) == others
        (clean,) = exact_orders(tokens[:, others], [17])
        assert order[:17] == [others[i] for i in clean.tolist()]

    def test_reads_no_value_on_the_host(self):
        # Tensors on the meta device have no values: reading one raises.
        tokens = torch.empty(6, 64, 32, device='meta', dtype=torch.bfloat16)
        kept = TfpsSelector().select(tokens, [6, 10, 64, 1, 63, 6])
        assert [len(indices) for indices in kept] == [6, 10, 64, 1, 63, 6]
        assert {indices.device.type for indices in kept} == {'meta'}
