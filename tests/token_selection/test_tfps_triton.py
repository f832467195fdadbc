"""The Triton kernels in Triton's interpreter, on machines without a GPU.

bfloat16 is tested on GPUs only: the interpreter multiplies its bit patterns as integers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
import subprocess
import sys

import numpy as np
from p2d_node.token_selection.tfps_exact import exact_orders
import pytest
from tfps_definition import duplicated_integers, INPUTS
import torch
from torch import Tensor

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec('triton') is None, reason='Triton is not installed'
)


def _with_unusable() -> Tensor:
    tokens = INPUTS['random'](np.random.default_rng(0), (1, 20, 8))
    tokens[0, 3, 1] = float('nan')
    tokens[0, 9, 0] = float('inf')
    return tokens


def _cases() -> dict[str, tuple[Tensor, int]]:
    rng = np.random.default_rng(7)
    with_zeros = INPUTS['random'](rng, (2, 40, 16)) * (torch.arange(40) % 4 > 0)[:, None]
    return {
        'random': (INPUTS['random'](rng, (3, 150, 70)), 60),
        'clustered': (INPUTS['clustered'](rng, (2, 100, 40)), 30),
        'duplicated': (duplicated_integers(rng, (2, 90, 33)), 80),
        'one tile': (INPUTS['random'](rng, (2, 64, 32)), 63),
        'two tokens': (INPUTS['random'](rng, (1, 2, 5)), 1),
        'float16': (INPUTS['random'](rng, (2, 70, 40)).half(), 20),
        'float64': (INPUTS['random'](rng, (2, 70, 40)).double(), 20),
        'with zeros': (with_zeros, 39),
        'part of a tensor': (INPUTS['random'](rng, (2, 80, 32))[:, ::2, 4:20], 12),
    }


CASES = _cases()


@pytest.fixture(scope='module')
def orders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The picks of the kernels per case."""
    folder = tmp_path_factory.mktemp('triton')
    torch.save({**CASES, 'unusable': (_with_unusable(), 19)}, folder / 'cases')
    script = Path(__file__).with_name('triton_interpreted.py')
    subprocess.run(
        [sys.executable, str(script), str(folder / 'cases'), str(folder / 'orders')],
        check=True,
        timeout=110,
    )
    return torch.load(folder / 'orders')


@pytest.mark.parametrize('case', sorted(CASES))
def test_the_kernels_equal_the_exact_search(case: str, orders: dict[str, Tensor]):
    tokens, count = CASES[case]
    assert torch.equal(orders[case], torch.stack(exact_orders(tokens, [count] * len(tokens))))


def test_the_kernels_pick_unusable_tokens_last(orders: dict[str, Tensor]):
    order = orders['unusable'][0].tolist()
    assert order[18] == 3
    assert 9 not in order
    others = [i for i in range(20) if i not in {3, 9}]
    (clean,) = exact_orders(_with_unusable()[:, others], [17])
    assert order[:17] == [others[i] for i in clean.tolist()]
