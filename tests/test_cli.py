"""`p2d` as a user types it; what needs DDS is in tests/ros."""

import json
import re

from p2d_node.cli.main import EXIT_BAD_INPUT, main, make_parser, VERBS
import pytest
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
        (
            ['demo', '--retention', '1.5'],
            'retention_ratio.CAM_FRONT: got 1.5, allowed',
        ),
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
