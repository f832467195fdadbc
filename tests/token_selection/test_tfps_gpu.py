"""T-FPS on an NVIDIA GPU: indices of both implementations, synchronisation and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import importlib.util

import numpy as np
from p2d_node.benchmarks.plans import SelectionBenchmark
from p2d_node.benchmarks.selection import run_selection_benchmark
from p2d_node.token_selection import order_tokens, select_adaptively, select_tokens
from p2d_node.token_selection.tfps import TfpsSelector, triton_runs
from p2d_node.token_selection.tfps_batched import CudaGraphs
from p2d_node.token_selection.tfps_exact import exact_orders
import pytest
from tfps_definition import assert_every_pick_is_best, duplicated_integers, INPUTS
import torch
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU'),
]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec('triton') is None, reason='Triton is not installed'
)


def graph_order(tokens: Tensor, count: int) -> Tensor:
    return CudaGraphs().order(tokens, count)


def triton_order(tokens: Tensor, count: int) -> Tensor:
    from p2d_node.token_selection import tfps_triton

    return tfps_triton.triton_order(tokens, count)


ORDER_FUNCTIONS = [graph_order, pytest.param(triton_order, marks=needs_triton)]


@pytest.fixture
def forbid_synchronization() -> Iterator[Callable[[], None]]:
    yield lambda: torch.cuda.set_sync_debug_mode('error')
    torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('compute_order', ORDER_FUNCTIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('make', [INPUTS['random'], duplicated_integers])
def test_picks_equal_the_exact_search_on_the_cpu(
    compute_order: Callable[[Tensor, int], Tensor], dtype: torch.dtype, make: Callable[..., Tensor]
):
    tokens = make(np.random.default_rng(11), (6, 200, 48)).to(dtype)
    exact = torch.stack(exact_orders(tokens, [100] * 6))
    assert torch.equal(compute_order(tokens.cuda(), 100).cpu(), exact)


@pytest.mark.parametrize('compute_order', ORDER_FUNCTIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('kind', sorted(INPUTS))
def test_every_pick_is_the_farthest_within_float32_error(
    compute_order: Callable[[Tensor, int], Tensor], dtype: torch.dtype, kind: str
):
    tokens = INPUTS[kind](np.random.default_rng(11), (2, 300, 1152)).to(dtype)
    order = compute_order(tokens.cuda(), 200).cpu()
    for view in range(2):
        assert_every_pick_is_best(order[view], tokens[view], tolerance=5e-6)


@pytest.mark.parametrize('compute_order', ORDER_FUNCTIONS)
def test_tf32_set_globally_does_not_change_the_picks(
    compute_order: Callable[[Tensor, int], Tensor],
):
    tokens = INPUTS['random'](np.random.default_rng(1), (6, 200, 256))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        order = compute_order(tokens.cuda(), 50).cpu()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert torch.equal(order, torch.stack(exact_orders(tokens, [50] * 6)))


@needs_triton
def test_triton_is_used_if_it_is_installed():
    assert triton_runs(torch.device('cuda', 0))


def test_selecting_does_not_synchronize_after_warm_up(forbid_synchronization: Callable[[], None]):
    tokens = torch.randn(6, 729, 1152, device='cuda')
    selector, num_keep = TfpsSelector(), [72, 36, 729, 1, 100, 72]
    selector.select(tokens, num_keep)
    torch.cuda.synchronize()
    forbid_synchronization()
    kept = selector.select(tokens, num_keep)
    assert [len(indices) for indices in kept] == num_keep


def test_indices_stay_on_the_device_and_equal_those_of_the_cpu():
    tokens = INPUTS['clustered'](np.random.default_rng(2), (6, 144, 192))
    num_keep = [14, 144, 7, 1, 72, 14]
    kept = select_tokens(tokens.cuda(), num_keep)
    assert all(indices.is_cuda for indices in kept)
    on_cpu = select_tokens(tokens, num_keep)
    assert [indices.tolist() for indices in kept] == [indices.tolist() for indices in on_cpu]


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_sweep_takes_under_a_millisecond_and_thirty_times_less_than_the_loop(dtype: str):
    plan = SelectionBenchmark(
        num_tokens=(729,), hidden=(4096,), retention_ratios=(0.1,), device='cuda', dtype=dtype
    )
    (timing,) = run_selection_benchmark(plan)
    assert timing.tfps_median_ms < 1.0
    assert timing.speedup >= 30.0


def test_order_and_adaptive_allocation_equal_those_of_the_cpu():
    tokens = INPUTS['random'](np.random.default_rng(2), (3, 60, 32))
    expected, order = order_tokens(tokens, 60), order_tokens(tokens.cuda(), 60)
    assert torch.equal(order.indices.cpu(), expected.indices)
    torch.testing.assert_close(order.distances.cpu(), expected.distances, atol=2e-6, rtol=0)
    on_cpu, on_gpu = (
        select_adaptively([t], [9, 9, 9], [1.0] * 3) for t in (tokens, tokens.cuda())
    )
    assert [view.tolist() for view in on_gpu] == [view.tolist() for view in on_cpu]
