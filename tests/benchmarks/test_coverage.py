"""The distance of dropped tokens to kept ones, as `benchmarks/` measures and plots it."""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path
import re
import sys

import cv2
import numpy as np
from p2d_node.benchmarks.selection import ADAPTIVE
from p2d_node.errors import ConfigError
from p2d_node.token_selection.factory import SELECTORS
from PIL import Image
import pytest
from sweeps import picture
from tfps_definition import clustered_tokens, random_tokens
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / 'benchmarks'))
import coverage_of_sweep
from token_coverage import (
    compare_coverage,
    coverage_of,
    kept_mask,
    NOTHING_KEPT,
    plot_kept_tokens,
)


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
    compared = compare_coverage(tokens, [14] * 6, ['tfps', 'random', 'grid', 'dart'])
    worst = {method: figure.worst_distance for method, (figure, _) in compared.items()}
    assert worst['tfps'] < 0.99 * min(worst['random'], worst['grid'], worst['dart'])


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


def test_the_methods_are_compared_on_stored_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tokens = clustered_tokens(np.random.default_rng(0), (2, 64, 32)).numpy()
    np.save(tmp_path / 'tokens.npy', tokens)
    plot = tmp_path / 'kept.png'
    arguments = [str(tmp_path / 'tokens.npy'), '--plot', str(plot), '--retention-ratio', '0.2']
    assert coverage_of_sweep.main([*arguments, '--json']) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures) == [*SELECTORS, ADAPTIVE]
    assert sum(figures[ADAPTIVE]['num_kept']) == 24
    assert figures['grid']['num_kept'] == [12, 12]
    assert sum(figures['divprune']['num_kept']) == 24
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize('content', [b'nonsense', b''])
def test_a_file_that_is_not_an_array_is_refused(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / 'tokens.npy').write_bytes(content)
    assert coverage_of_sweep.main([str(tmp_path / 'tokens.npy')]) == 2
    assert re.search(r'tokens\.npy: not a readable \.npy array', capsys.readouterr().err)


@pytest.mark.parametrize('shape', [(3, 4), (6, 0, 8), (0, 9, 8), (6, 9, 0)])
def test_arrays_of_another_shape_are_refused(
    tmp_path: Path, shape: tuple[int, ...], capsys: pytest.CaptureFixture[str]
):
    np.save(tmp_path / 'tokens.npy', np.ones(shape, np.float32))
    assert coverage_of_sweep.main([str(tmp_path / 'tokens.npy')]) == 2
    assert f'got torch.float32 {list(shape)}, allowed: float' in capsys.readouterr().err


def test_a_plot_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / 'kept.png').mkdir()
    with pytest.raises(ConfigError, match=r'kept\.png cannot be written: .*Is a directory'):
        plot_kept_tokens(tmp_path / 'kept.png', {'a': [torch.arange(2)]}, 4, view_names=['left'])


def test_coverage_is_measured_on_the_tokens_of_a_model(tiny_checkpoint, tmp_path, capsys):
    paths = []
    for index in range(6):
        paths.append(str(tmp_path / f'{index}.png'))
        cv2.imwrite(paths[-1], picture(index))
    plot = tmp_path / 'kept.png'
    words = ['--model', str(tiny_checkpoint), '--images', *paths]
    assert coverage_of_sweep.main([*words, '--plot', str(plot), '--json']) == 0
    figures = json.loads(capsys.readouterr().out)
    worst = {method: row['worst_distance'] for method, row in figures.items()}
    assert worst['tfps'] < min(worst['random'], worst['grid'])
    assert figures['tfps']['num_kept'] == [8] * 6
    assert cv2.imread(str(plot)).shape[0] > 100


@pytest.mark.parametrize(
    ('words', 'reason'),
    [
        ([], 'needed: either a file of visual tokens, or --model'),
        (['--model', 'untrained'], '--images is missing'),
        (['t.npy', '--plot', 'nodir/x.png'], "plot: got 'nodir/x.png', but nodir is not a folder"),
        (
            ['t.npy', '--plot', 'x.xyz'],
            "plot: got 'x.xyz', allowed: a name that ends in one of ep",
        ),
    ],
)
def test_bad_input_is_one_line(words, reason, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert coverage_of_sweep.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert list(tmp_path.iterdir()) == []
