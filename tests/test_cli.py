"""`p2d` as a user types it; what needs DDS is in tests/ros."""

import json
import re

import cv2
from p2d_node.cli.main import EXIT_BAD_INPUT, main, make_parser, VERBS
import pytest
from sweeps import picture
from test_bags import drivelm  # noqa: F401 - a fixture


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
        (['make-bag', '--nuscenes', 'nowhere', '--out', 'x'], 'got 0 versions'),
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
