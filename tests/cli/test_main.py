"""`p2d` as a user types it; what needs DDS is in tests/ros."""

import json
import re
from types import SimpleNamespace

import cv2
from p2d_node.cli import bench_node
from p2d_node.cli.main import EXIT_BAD_INPUT, main, make_parser, VERBS
from p2d_node.evaluation.selection_benchmark import processor_name
from p2d_node.records import StageTimes
import pytest
from sweeps import picture
from test_bags import drivelm  # noqa: F401 - a fixture
import torch

NEEDS_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU'),
)


def test_every_verb_has_help_with_an_example(capsys):
    verbs = next(iter(make_parser()._subparsers._group_actions)).choices
    assert len(verbs) >= len(VERBS)
    for name in verbs:
        with pytest.raises(SystemExit, match='0'):
            main([name, '--help'])
        assert f'p2d {name}' in re.split('examples?:', capsys.readouterr().out)[1]


def test_make_bag_says_what_it_made(drivelm, tmp_path, capsys):  # noqa: F811
    arguments = ['make-bag', '--drivelm', str(drivelm / 'drivelm.json'), '--images', str(drivelm)]
    assert main([*arguments, '--out', str(tmp_path / 'bag'), '--json']) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == {'bag': str(tmp_path / 'bag'), 'images': 18, 'storage': 'mcap'}


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (
            ['make-bag', '--drivelm', 'no.json', '--images', '.', '--out', 'x'],
            'no.json: cannot',
        ),
        (['make-bag', '--drivelm', 'no.json', '--out', 'x'], '--images is missing'),
        (['make-bag', '--nuscenes', 'nowhere', '--out', 'x'], '--version: got 0 versions'),
        (['replay', '--bag', 'nowhere'], "--bag: got 'nowhere', which does not exist"),
        (['replay', '--bag', 'nowhere', '--rate', '0'], '--rate: got 0, allowed: above 0'),
        (['replay', '--bag', 'x', '--wait', 'nan'], '--wait: got nan, allowed: 0 or more'),
        (['replay', '--bag', 'x', '--duration', '-1'], '--duration: got -1, allowed: above 0'),
        (['replay', '--bag', 'x', '--duration', 'nan'], '--duration: got nan, allowed: above 0'),
        (
            ['make-bag', '--synthetic', 'cruise', '--out', 'x', '--seed', '-1'],
            '--seed: got -1, allowed: 0 or more',
        ),
        (
            ['demo', '--retention', '1.5'],
            'retention_ratio.CAM_FRONT: got 1.5, allowed',
        ),
        (['bench', 'coverage'], 'needed: either a file of visual tokens, or --model'),
        (['bench', 'coverage', '--model', 'untrained'], '--images is missing'),
        (['bench', 'node', '--sweeps', '2'], '--sweeps: got 2 with --warm-up 3'),
        (['bench', 'node', '--retention-ratio', '2'], 'retention_ratio.CAM_FRONT: got 2.0'),
        (['bench', 'node', '--max-new-tokens', '0'], 'max_new_tokens: got 0, allowed: 1 to'),
        (['bench', 'node', '--encoder-backend', 'x'], "encoder.backend: got 'x', allowed: auto"),
        (['bench', 'node', '--device', 'bogus'], "device: got 'bogus', allowed: auto"),
        (['bench', 'node', '--threads', '0'], '--threads: got 0, allowed: 1 or more'),
        (
            ['bench', 'coverage', 't.npy', '--plot', 'nodir/x.png'],
            "plot: got 'nodir/x.png', but nodir is not a folder",
        ),
        (
            ['bench', 'coverage', 't.npy', '--plot', 'x.xyz'],
            "plot: got 'x.xyz', allowed: a name that ends in one of eps",
        ),
        (['demo', '--out', '/dev/null'], '--out: /dev/null cannot be written: File exists'),
        (['demo', '--out', '/dev/null/x'], '--out: /dev/null/x cannot be written: Not a dir'),
        (['demo', '--model', 'nowhere'], "model: got 'nowhere', which is not a folder"),
        (['demo', '--sample', 'nowhere'], '--sample: nowhere has no drivelm_sample.json'),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_code_2(
    arguments, reason, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == EXIT_BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ''
    (line,) = captured.err.splitlines()
    assert line.startswith(f'p2d {arguments[0]}: ')
    assert reason in line
    assert list(tmp_path.iterdir()) == []


def test_a_missing_verb_shows_the_verbs(capsys):
    with pytest.raises(SystemExit, match='2'):
        make_parser().parse_args([])
    assert 'VERB' in capsys.readouterr().err


def test_coverage_is_measured_on_the_tokens_of_a_model(tiny_checkpoint, tmp_path, capsys):
    paths = []
    for index in range(6):
        paths.append(str(tmp_path / f'{index}.png'))
        cv2.imwrite(paths[-1], picture(index))
    plot = tmp_path / 'kept.png'
    words = ['bench', 'coverage', '--model', str(tiny_checkpoint), '--images', *paths]
    assert main([*words, '--plot', str(plot), '--json']) == 0
    figures = json.loads(capsys.readouterr().out)
    worst = {method: row['worst_distance'] for method, row in figures.items()}
    assert worst['tfps'] < min(worst['random'], worst['grid'])
    assert figures['tfps']['num_kept'] == [8] * 6
    assert cv2.imread(str(plot)).shape[0] > 100


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=NEEDS_GPU)])
def test_the_figures_of_the_node_carry_the_device_and_the_threads_that_it_was_given(device):
    args = make_parser().parse_args(['bench', 'node', '--device', device])
    config = bench_node._config(args)
    given = bench_node._parameters(config)
    assert given['device'] == device
    assert given['num_threads'] == max(1, torch.get_num_threads() - 1)
    answer = SimpleNamespace(model='m', encoder='torch', tokens_kept=[1], tokens_total=[9])
    report = bench_node._to_report(args, config, [StageTimes()], [answer])
    name = processor_name() if device == 'cpu' else torch.cuda.get_device_name(device)
    assert report['device'] == name
    assert report['torch_threads'] == given['num_threads']
