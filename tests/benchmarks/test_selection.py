"""The benchmark of token selection: what it measures, and that its figures hold."""

from __future__ import annotations

from collections.abc import Iterator
import json
from pathlib import Path
import subprocess
import sys
import time

import numpy as np
from p2d_node.benchmarks import selection
from p2d_node.benchmarks.measuring import percentile
from p2d_node.benchmarks.plans import SelectionBenchmark
from p2d_node.benchmarks.selection import per_token_loop, run_selection_benchmark
from p2d_node.cli.main import main
from p2d_node.errors import ConfigError
import pytest
from tfps_definition import kept_by_definition, random_tokens
import torch


def test_the_baseline_follows_the_same_rule():
    tokens = random_tokens(np.random.default_rng(0), (2, 40, 16))
    kept = [indices.tolist() for indices in per_token_loop(tokens, [12, 3])]
    assert kept == kept_by_definition(tokens, [12, 3])


@pytest.fixture
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures('_one_thread')
def test_times_are_those_of_the_functions_that_ran(monkeypatch: pytest.MonkeyPatch):
    def slow_loop(tokens: torch.Tensor, num_keep: list[int]) -> list[torch.Tensor]:
        time.sleep(0.05)
        return per_token_loop(tokens, num_keep)

    monkeypatch.setattr(selection, 'per_token_loop', slow_loop)
    plan = SelectionBenchmark(
        num_views=2, num_tokens=(32,), hidden=(8,), retention_ratios=(0.25,), repeats=3
    )
    (timing,) = run_selection_benchmark(plan)
    assert timing.num_keep == 8
    assert 50 <= timing.baseline_median_ms <= timing.baseline_p95_ms
    assert 0 < timing.tfps_median_ms < 50
    assert timing.speedup == timing.baseline_median_ms / timing.tfps_median_ms
    assert timing.same_picks == 1.0


def test_a_disturbed_case_is_measured_again(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def loop_with_one_pause(tokens: torch.Tensor, num_keep: list[int]) -> list[torch.Tensor]:
        calls.append(len(calls))
        time.sleep(0.2 if len(calls) == 4 else 0.01)
        return per_token_loop(tokens, num_keep)

    monkeypatch.setattr(selection, 'per_token_loop', loop_with_one_pause)
    monkeypatch.setattr(selection, 'STEADY', 10.0)
    plan = SelectionBenchmark(
        num_views=1,
        num_tokens=(16,),
        hidden=(8,),
        retention_ratios=(0.25,),
        warm_up=1,
        repeats=3,
    )
    (timing,) = run_selection_benchmark(plan)
    assert timing.attempts >= 2
    assert timing.baseline_p95_ms < 200


@pytest.mark.parametrize(
    ('values', 'share', 'expected'),
    [(range(1, 21), 0.95, 19), ([3.0, 1.0, 2.0], 0.95, 3.0), ([7.0], 0.5, 7.0)],
)
def test_a_percentile_is_a_measured_value(values: list[float], share: float, expected: float):
    assert percentile(values, share) == expected


def test_a_plan_that_needs_more_memory_than_is_free_is_refused_before_it_is_tried():
    plan = SelectionBenchmark(num_tokens=(2_000_000,))
    with pytest.raises(ConfigError, match='num_tokens: got 2000000, which needs about'):
        next(run_selection_benchmark(plan))


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'num_tokens': (0,)}, 'num_tokens: got 0, allowed: 1 or more'),
        ({'repeats': 0}, 'repeats: got 0, allowed: 1 to 10000'),
        ({'dtype': 'int8'}, "got 'int8', allowed: float32"),
    ],
)
def test_a_plan_that_cannot_be_measured_is_refused(wrong: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        SelectionBenchmark(**wrong)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.usefixtures('_one_thread')
def test_on_one_core_it_beats_the_loop_and_hardly_grows():
    # One thread, as the share of a busy machine's other cores is anybody's guess, and less than
    # the measured 1.7x and 3.2x, as its memory is shared too. What is promised is checked below.
    plan = SelectionBenchmark(
        num_tokens=(729,), hidden=(1152,), retention_ratios=(0.05, 0.1, 0.25, 0.5), repeats=5
    )
    five, ten, twenty_five, fifty = run_selection_benchmark(plan)
    assert ten.speedup >= 1.3
    assert twenty_five.speedup >= 2.0
    assert fifty.tfps_median_ms < 2.0 * five.tfps_median_ms


def test_bench_select_prints_a_report_of_every_case(capsys: pytest.CaptureFixture[str]):
    small = ['--views', '2', '--tokens', '16', '25', '--hidden', '8', '--repeats', '2']
    assert main(['bench', 'select', *small, '--device', 'cpu', '--json']) == 0
    report = json.loads(capsys.readouterr().out)
    sizes = [(case['num_tokens'], case['retention_ratio']) for case in report['cases']]
    assert sizes == [(n, r) for n in (16, 25) for r in (0.05, 0.1, 0.25, 0.5)]
    assert report['torch'] == torch.__version__
    assert report['repeats'] == 2
    assert report['torch_threads'] == torch.get_num_threads()


def test_bench_select_prints_a_table(capsys: pytest.CaptureFixture[str]):
    words = ['--tokens', '16', '--hidden', '8', '--repeats', '1', '--device', 'cpu']
    assert main(['bench', 'select', *words]) == 0
    assert 'per-token loop' in capsys.readouterr().out


def test_the_documented_figures_are_the_measured_ones_and_hold_what_is_promised():
    root = Path(__file__).resolve().parents[2]
    script = root / 'benchmarks' / 'document_selection.py'
    assert subprocess.run([sys.executable, str(script), '--check'], check=False).returncode == 0
    measured = json.loads((root / 'benchmarks/results/select-2-core-cpu.json').read_text())
    cases = {
        case['retention_ratio']: case
        for case in measured['cases']
        if (case['num_views'], case['num_tokens'], case['hidden']) == (6, 729, 1152)
    }
    assert all(case['steady'] for case in cases.values())
    assert cases[0.1]['speedup'] >= 2.0
    assert cases[0.25]['speedup'] >= 4.0
    assert cases[0.5]['tfps_median_ms'] < 2.0 * cases[0.05]['tfps_median_ms']


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU here')
def test_the_gpu_script_says_in_one_line_that_there_is_no_gpu():
    script = Path(__file__).resolve().parents[2] / 'benchmarks' / 'gpu.sh'
    done = subprocess.run(
        [str(script), '--python', sys.executable], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == ('gpu.sh: torch sees no NVIDIA GPU; run it on a machine with one\n')
