"""The benchmark and the coverage figure: what they measure, and that they can be believed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
import json
from pathlib import Path
import re
import subprocess
import sys
import time

import numpy as np
from p2d_node.cli import bench
from p2d_node.errors import ConfigError
from p2d_node.evaluation import selection_benchmark
from p2d_node.evaluation.coverage import (
    ADAPTIVE,
    compare_coverage,
    coverage_of,
    kept_mask,
    NOTHING_KEPT,
    plot_kept_tokens,
)
from p2d_node.evaluation.selection_benchmark import (
    per_token_loop,
    percentile,
    run_selection_benchmark,
    SelectionBenchmark,
)
from p2d_node.token_selection.factory import SELECTORS
from PIL import Image
import pytest
from tfps_definition import clustered_tokens, kept_by_definition, random_tokens
import torch


def run_bench(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    args = parser.parse_args(['bench', *arguments])
    return args.run(args)


def test_the_baseline_follows_the_same_rule():
    tokens = random_tokens(np.random.default_rng(0), (2, 40, 16))
    kept = [indices.tolist() for indices in per_token_loop(tokens, [12, 3])]
    assert kept == kept_by_definition(tokens, [12, 3])


def test_times_are_those_of_the_functions_that_ran(monkeypatch: pytest.MonkeyPatch):
    def slow_loop(tokens: torch.Tensor, num_keep: list[int]) -> list[torch.Tensor]:
        time.sleep(0.05)
        return per_token_loop(tokens, num_keep)

    monkeypatch.setattr(selection_benchmark, 'per_token_loop', slow_loop)
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

    monkeypatch.setattr(selection_benchmark, 'per_token_loop', loop_with_one_pause)
    monkeypatch.setattr(selection_benchmark, 'STEADY', 10.0)
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


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'num_tokens': (0,)}, 'got a size of 0'),
        ({'repeats': 0}, 'got 0 repeats'),
        ({'dtype': 'int8'}, "got 'int8', allowed: float32"),
    ],
)
def test_a_plan_that_cannot_be_measured_is_refused(wrong: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        SelectionBenchmark(**wrong)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
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
    assert run_bench('select', *small, '--device', 'cpu', '--json') == 0
    report = json.loads(capsys.readouterr().out)
    sizes = [(case['num_tokens'], case['retention_ratio']) for case in report['cases']]
    assert sizes == [(n, r) for n in (16, 25) for r in (0.05, 0.1, 0.25, 0.5)]
    assert report['torch'] == torch.__version__
    assert report['repeats'] == 2
    assert report['torch_threads'] == torch.get_num_threads()


def test_bench_select_prints_a_table(capsys: pytest.CaptureFixture[str]):
    run_bench('select', '--tokens', '16', '--hidden', '8', '--repeats', '1', '--device', 'cpu')
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


def test_coverage_is_the_distance_to_the_nearest_kept_token():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [3.0, 0.0]]])
    found = coverage_of(tokens, [torch.tensor([0])])
    assert found.worst_distance == pytest.approx(2.0)
    assert found.mean_distance == pytest.approx((1.0 + 2.0 + 0.0) / 3)
    assert found.num_kept == (1,)


def test_coverage_of_all_and_of_nothing():
    tokens = torch.eye(3)[None]
    assert coverage_of(tokens, [torch.arange(3)]).worst_distance == 0.0
    nothing = coverage_of(tokens, [torch.arange(0)])
    assert nothing.mean_distance == nothing.worst_distance == NOTHING_KEPT


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('make', [clustered_tokens, random_tokens])
def test_tfps_leaves_no_token_as_far_away_as_others_of_the_same_count_do(
    seed: int, make: Callable[..., torch.Tensor]
):
    # DivPrune is not among them: it shares the total out over the views as it likes.
    tokens = make(np.random.default_rng(seed), (6, 144, 64))
    compared = compare_coverage(tokens, [14] * 6, ['tfps', 'random', 'grid'])
    worst = {method: figure.worst_distance for method, (figure, _) in compared.items()}
    assert worst['tfps'] < 0.99 * min(worst['random'], worst['grid'])


def test_kept_patches_are_lit_row_by_row():
    mask = kept_mask(torch.tensor([1, 5]), 9)
    assert np.argwhere(mask == 1.0).tolist() == [[0, 1], [1, 2]]
    with pytest.raises(ConfigError, match='got 8 tokens per view, allowed: a square'):
        kept_mask(torch.tensor([1]), 8)


def test_the_plot_shows_kept_patches_brighter_than_dropped_ones(tmp_path: Path):
    tokens = random_tokens(np.random.default_rng(0), (2, 16, 8))
    compared = compare_coverage(tokens, [4, 4], ['tfps', 'grid'])
    white = [np.full((40, 40, 3), 255, np.uint8)] * 2
    for images, name in ((None, 'plain.png'), (white, 'pictures.png')):
        plot_kept_tokens(
            tmp_path / name,
            {method: kept for method, (_, kept) in compared.items()},
            16,
            view_names=['left', 'right'],
            images=images,
        )
        shown = np.asarray(Image.open(tmp_path / name).convert('L'))
        dimmed = np.mean(np.abs(shown.astype(int) - 63) <= 2)
        assert 0.3 < dimmed < 0.75


def test_bench_coverage_compares_the_methods_on_stored_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tokens = clustered_tokens(np.random.default_rng(0), (2, 64, 32)).numpy()
    np.save(tmp_path / 'tokens.npy', tokens)
    plot = tmp_path / 'kept.png'
    arguments = ['coverage', str(tmp_path / 'tokens.npy'), '--plot', str(plot)]
    assert run_bench(*arguments, '--retention-ratio', '0.2', '--json') == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures) == [*SELECTORS, ADAPTIVE]
    assert sum(figures[ADAPTIVE]['num_kept']) == 24
    assert figures['grid']['num_kept'] == [12, 12]
    assert sum(figures['divprune']['num_kept']) == 24
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize('content', [b'nonsense', b''])
def test_bench_coverage_refuses_what_is_no_array(tmp_path: Path, content: bytes):
    (tmp_path / 'tokens.npy').write_bytes(content)
    with pytest.raises(ConfigError, match=r'tokens\.npy: not a readable \.npy array'):
        run_bench('coverage', str(tmp_path / 'tokens.npy'))


@pytest.mark.parametrize('shape', [(3, 4), (6, 0, 8), (0, 9, 8), (6, 9, 0)])
def test_bench_coverage_refuses_arrays_of_another_shape(tmp_path: Path, shape: tuple[int, ...]):
    np.save(tmp_path / 'tokens.npy', np.ones(shape, np.float32))
    sizes = re.escape(str(list(shape)))
    with pytest.raises(ConfigError, match=f'got torch.float32 {sizes}, allowed: float'):
        run_bench('coverage', str(tmp_path / 'tokens.npy'))


def test_a_plot_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / 'kept.png').mkdir()
    with pytest.raises(ConfigError, match=r'kept\.png cannot be written: .*Is a directory'):
        plot_kept_tokens(tmp_path / 'kept.png', {'a': [torch.arange(2)]}, 4, view_names=['left'])
