"""`p2d tune-ratios` with the model that ships: complete, interrupted and resumed, and refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import time

import optuna
from optuna.trial import TrialState
from p2d_node import retention_presets
from p2d_node.cli.main import EXIT_BAD_INPUT, EXIT_INTERRUPTED, main
from p2d_node.cli.parameter_file import read_drive_config
from p2d_node.errors import ConfigError, P2dError
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.token_selection import num_keep_from_retention
from p2d_node.tuning.installation import install_ratios
from p2d_node.tuning.storage import open_storage
from p2d_node.tuning.trials import finished, retry_history
from PIL import Image
import pytest

PATCHES = 196


def words(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        *('tune-ratios', '--data', str(folder / 'drivelm.json'), '--images', str(folder)),
        *('--out', str(out), '--params-out', str(out / 'mini.yaml'), '--json'),
        *('--cache', str(folder.parent / 'cache'), *more),
    ]


def run_json(capsys, arguments):
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out)


def trials_of(storage: str, method: str = 'tpe') -> list[optuna.trial.FrozenTrial]:
    study = optuna.load_study(study_name=f'p2d-mini/{method}', storage=open_storage(storage, 60.0))
    return study.get_trials()


@pytest.mark.slow
def test_a_search_leaves_a_parameter_file_a_picture_and_a_report(
    searched_folder, held_out_folder, tmp_path, capsys
):
    arguments = words(
        searched_folder,
        tmp_path,
        *('--mean-retention', '0.1', '--trials', '3', '--methods', 'tpe,uniform'),
        *('--held-out', str(held_out_folder / 'drivelm.json')),
        *('--held-out-images', str(held_out_folder)),
    )
    report = run_json(capsys, arguments)
    assert {m: r['num_trials'] for m, r in report['methods'].items()} == {'tpe': 3, 'uniform': 1}
    best = report['best']
    assert best['score'] == max(r['best']['score'] for r in report['methods'].values())
    assert best['tokens_kept'] == report['methods']['uniform']['best']['tokens_kept'] == 6 * 19

    page = Path(report['files']['report']).read_text()
    assert f'{best["score"]:.4f}' in page
    assert 'data:image/png;base64,' in page

    path = tmp_path / 'mini.yaml'
    config = read_drive_config(path)
    kept = [num_keep_from_retention(PATCHES, config.retention_ratio[c]) for c in NUSCENES_CAMERAS]
    searched = [num_keep_from_retention(PATCHES, r) for r in best['ratios'].values()]
    assert kept == searched
    assert sum(kept) == 6 * 19
    header = [line for line in path.read_text().splitlines() if line.startswith('# ')]
    assert [line for line in header if 'drivelm.json, 4 keyframes' in line]
    assert [line for line in header if 'trials: tpe 3' in line]
    assert [line for line in header if f'score:  {best["score"]:.4f}' in line]
    assert [line for line in header if 'date:   20' in line]

    held_out = report['held_out']
    assert held_out['num_keyframes'] == 2
    assert held_out['tokens_kept'] == [114, 114]
    score = held_out['figures']['score']
    assert score['low'] <= score['difference'] <= score['high']
    assert held_out['verdict'] in ('better', 'worse', 'no difference shown')
    with Image.open(tmp_path / 'study.png') as picture:
        assert picture.size[0] > 1000
        assert len(picture.convert('RGB').getcolors(1 << 20)) > 20

    again = run_json(capsys, arguments)
    assert again['methods'] == report['methods']
    more = run_json(capsys, [*arguments, '--trials', '4'])
    assert more['methods']['tpe']['num_trials'] == 4
    assert more['methods']['tpe']['history'][:3] == report['methods']['tpe']['history']

    assert main([*arguments, '--accuracy-weight', '1']) == EXIT_BAD_INPUT
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'was made with objective accuracy_weight 0.5, now it is 1.0; choose another' in error


def start_process(arguments: list[str], log: Path) -> subprocess.Popen:
    with log.open('w') as file:
        command = [sys.executable, '-m', 'p2d_node.cli.main', *arguments]
        return subprocess.Popen(command, stdout=file, stderr=file)


def in_a_trial(storage: Path, num_finished: int) -> bool:
    """Whether a trial answers questions after `num_finished` others.

    It has stored its ratios and no score: a trial that stores its score ends before the search
    obeys a signal.
    """
    if not storage.exists():
        return False
    with contextlib.suppress(KeyError, P2dError):
        trials = trials_of(str(storage))
        running = [t.user_attrs for t in trials if t.state == TrialState.RUNNING]
        answers = any('tokens_kept' in facts and 'language' not in facts for facts in running)
        return len(finished(trials)) >= num_finished and answers
    return False


def end_in_a_trial(process: subprocess.Popen, storage: Path, end: signal.Signals) -> None:
    """Send `end` in the middle of a trial.

    A trial may end between the look at the database and the signal, so the process is stopped
    before the look that decides.
    """
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, 'it ended too early'
        if in_a_trial(storage, 1):
            process.send_signal(signal.SIGSTOP)
            if in_a_trial(storage, 1):
                process.send_signal(end)
                process.send_signal(signal.SIGCONT)
                return
            process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError('no trial began')


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ('end', 'code'), [(signal.SIGKILL, -9), (signal.SIGINT, EXIT_INTERRUPTED)]
)
def test_a_search_that_is_cut_goes_on_where_it_was(
    searched_folder, tmp_path, capsys, dtype_of_this_cpu, end, code
):
    arguments = words(
        searched_folder,
        tmp_path,
        *('--trials', '4', '--methods', 'tpe', '--lease', '8'),
    )
    storage = tmp_path / 'study.db'
    process = start_process(arguments, tmp_path / 'log')
    end_in_a_trial(process, storage, end)
    assert process.wait(60) == code
    left = trials_of(str(storage))
    before = {t.number: t.params for t in left if t.state in (TrialState.COMPLETE,)}
    assert before
    assert len(before) < 4

    report = run_json(capsys, arguments)
    assert report['methods']['tpe']['num_trials'] == 4
    trials = trials_of(str(storage))
    assert len(finished(trials)) == 4
    assert {number: trials[number].params for number in before} == before
    (lost,) = [t for t in trials if t.state == TrialState.FAIL]
    (again,) = [t for t in trials if retry_history(t) == [lost.number]]
    assert again.params == lost.params


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_workers_share_a_database(searched_folder, tmp_path, capsys):
    storage = f'sqlite:///{tmp_path}/study.db'
    arguments = words(searched_folder, tmp_path, '--trials', '6', '--workers', '2', '--limit', '1')
    report = run_json(capsys, [*arguments, '--storage', storage, '--methods', 'tpe,random'])
    for method in ('tpe', 'random'):
        done = finished(trials_of(storage, method))
        assert len(done) == report['methods'][method]['num_trials']
        assert 6 <= len(done) <= 7
        assert len({tuple(trial.params.values()) for trial in done}) == len(done)


def break_nothing(folder):
    """Leave the copy as it is."""


def remove_image(folder):
    next((folder / 'samples' / 'CAM_BACK').glob('*.jpg')).unlink()


def empty_image(folder):
    next((folder / 'samples' / 'CAM_BACK').glob('*.jpg')).write_bytes(b'')


def damage_image(folder):
    for path in (folder / 'samples' / 'CAM_BACK').glob('*.jpg'):
        path.write_bytes(b'this is no picture')


def empty_data(folder):
    (folder / 'drivelm.json').write_text('')


def name_no_camera(folder):
    turns = [{'from': 'human', 'value': 'What?'}, {'from': 'gpt', 'value': 'A'}]
    item = {'id': 'a_b_0', 'image': ['foo/bar.jpg'], 'conversations': turns}
    (folder / 'drivelm.json').write_text(json.dumps([item]))


def damage_storage(folder):
    out = folder.parent / 'out'
    out.mkdir()
    (out / 'study.db').write_text('{"op_code":99}\n' * 100)


def remove_answer(folder):
    path = folder / 'drivelm.json'
    data = json.loads(path.read_text())
    scene = next(iter(data.values()))
    next(iter(scene['key_frames'].values()))['QA']['perception'][1]['A'] = ''
    path.write_text(json.dumps(data))


def lengthen_question(folder):
    path = folder / 'drivelm.json'
    data = json.loads(path.read_text())
    scene = next(iter(data.values()))
    next(iter(scene['key_frames'].values()))['QA']['perception'][1]['Q'] = 'a' * 200_000
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ('break_', 'more', 'reason'),
    [
        (remove_image, (), 'there is no such image; check the folder'),
        (empty_image, (), 'the file is empty; copy the image again'),
        (damage_image, (), r'samples/CAM_BACK/.*jpg: CAM_BACK: .*allowed: JPEG or PNG'),
        (empty_data, (), 'drivelm.json is not valid JSON'),
        (remove_answer, (), 'questions have no answer, the first is'),
        (lengthen_question, (), 'data: question .*: got a text of 200000 characters'),
        (break_nothing, ('--storage', 'sqlite:////no/such/folder/s.db'), 'unable to open'),
        (
            break_nothing,
            ('--storage', '/proc/no/s.db'),
            'storage: /proc/no/s.db: .*No such file or dir',
        ),
        (
            break_nothing,
            ('--storage', 'nonsense://user:secret@host/x'),
            r'nonsense://user:\*\*\*@',
        ),
        (break_nothing, ('--methods', 'tpe,magic'), "methods: got 'magic', allowed: tpe"),
        (break_nothing, ('--trials', '0'), '--trials: got 0, allowed: 1 or more'),
        (break_nothing, ('--min-retention', '0.5', '--max-retention', '0.2'), 'not above'),
        (break_nothing, ('--tokenizer', 'auto'), '--tokenizer: got auto'),
        (break_nothing, ('--lease', 'nan'), '--lease: got nan, allowed: 4 to 1e'),
        (break_nothing, ('--lease', 'inf'), '--lease: got inf, allowed: 4 to 1e'),
        (break_nothing, ('--params-out', '/proc/x.yaml'), '--params-out: /proc/x.yaml cannot be'),
        (break_nothing, ('--params-out', '/proc'), '/proc cannot be written: Is a directory'),
        (break_nothing, ('--out', '/proc/version'), '--out: .*study.png cannot be written: Not a'),
        (name_no_camera, (), 'drivelm.json: not DriveLM data: ValueError: the image name foo/bar'),
        (damage_storage, (), 'study.db: cannot be used: file is not a database'),
    ],
)
def test_bad_input_is_one_clear_line(searched_folder, tmp_path, capsys, break_, more, reason):
    folder = tmp_path / 'data'
    shutil.copytree(searched_folder, folder)
    break_(folder)
    arguments = words(folder, tmp_path / 'out', '--trials', '1', *more)
    assert main(arguments) == EXIT_BAD_INPUT
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith('p2d tune-ratios:')
    ]
    assert 'secret' not in line
    assert re.search(reason, line)


def test_a_path_that_was_the_output_folder_costs_no_trial(searched_folder, tmp_path, capsys):
    out = tmp_path / 'out'
    out.write_text('a file')
    storage = f'sqlite:///{tmp_path}/study.db'
    assert main(words(searched_folder, out, '--storage', storage)) == EXIT_BAD_INPUT
    assert 'cannot be written: Not a directory' in capsys.readouterr().err
    assert not (tmp_path / 'study.db').exists()
    assert out.read_text() == 'a file'


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of its own, where the node looks for default ratios."""
    folder = tmp_path / 'package' / 'config' / 'retention'
    folder.mkdir(parents=True)
    monkeypatch.setattr(retention_presets, 'data_folder', lambda name: tmp_path / 'package' / name)
    return folder


@pytest.mark.slow
def test_ratios_become_the_models_defaults_only_when_they_are_installed(
    searched_folder, tmp_path, capsys, package
):
    out = tmp_path / 'out'
    arguments = [
        *('tune-ratios', '--data', str(searched_folder / 'drivelm.json'), '--limit', '1'),
        *('--images', str(searched_folder), '--trials', '1', '--methods', 'random'),
        *('--cache', str(searched_folder.parent / 'cache'), '--out', str(out)),
    ]
    report = run_json(capsys, [*arguments, '--json'])
    assert report['files']['params'] == str(out / 'p2d-mini.yaml')
    assert not report['is_default']
    assert list(package.iterdir()) == []
    assert main(arguments) == 0
    assert f'The node needs params_file:={out}' in capsys.readouterr().out
    report = run_json(capsys, [*arguments, '--install', '--json'])
    assert report['is_default']
    found = read_drive_config(out / 'p2d-mini.yaml').retention_ratio
    assert read_drive_config(None).retention_ratio == found


@pytest.mark.slow
def test_less_evidence_than_before_is_not_installed_without_force(
    searched_folder, tmp_path, capsys, package
):
    before = package / 'p2d-mini.yaml'
    header = '# trials: tpe 48 (28 pruned), random 48 (30 pruned)\n'
    before.write_text(f'{header}/**: {{ros__parameters: {{retention_ratio: {{}}}}}}\n')
    more = ('--trials', '1', '--methods', 'random', '--limit', '1', '--install')
    arguments = words(searched_folder, tmp_path / 'out', *more)
    assert main(arguments) == EXIT_BAD_INPUT
    captured = capsys.readouterr()
    assert json.loads(captured.out)['is_default'] is False
    assert 'p2d tune-ratios: --install: the study has 1 trials, that of ' in captured.err
    assert 'had 96; the ratios are in ' in captured.err
    assert before.read_text().startswith(header)
    report = run_json(capsys, [*arguments, '--force'])
    assert report['is_default']
    assert Path(report['files']['before']).read_text().startswith(header)
    assert before.read_text() == Path(report['files']['params']).read_text()


HEADER = '# trials: tpe {} (0 pruned)\n{}'
HELD_OUT = '# held out (x.json): no difference shown against ...: score {} against 0.5, ...\n'


@pytest.mark.parametrize(
    ('old', 'new', 'is_worse', 'reason'),
    [
        (HEADER.format(5, ''), HEADER.format(5, ''), False, None),
        ('no header', HEADER.format(1, ''), False, None),
        (None, HEADER.format(1, ''), True, 'an even split of the tokens is better'),
        (HEADER.format(5, ''), HEADER.format(4, ''), False, 'has 4 trials, that of .* had 5'),
        (
            HEADER.format(5, HELD_OUT.format(0.7)),
            HEADER.format(9, HELD_OUT.format(0.69)),
            False,
            r'held-out score 0\.69 is worse than 0\.7',
        ),
        (
            HEADER.format(5, HELD_OUT.format(0.7)),
            HEADER.format(9, ''),
            False,
            r'has the held-out score 0\.7, these ratios have none',
        ),
    ],
)
def test_what_speaks_for_ratios_decides_whether_they_are_installed(
    tmp_path, old, new, is_worse, reason
):
    found, target = tmp_path / 'found.yaml', tmp_path / 'installed.yaml'
    found.write_text(new)
    if old is not None:
        target.write_text(old)
    if reason is None:
        kept = install_ratios(found, target, is_worse=is_worse, force=False)
        assert (target.read_text(), kept.read_text()) == (new, old)
        return
    with pytest.raises(ConfigError, match=f'^install: .*{reason}.*give --force'):
        install_ratios(found, target, is_worse=is_worse, force=False)
    assert (target.read_text() if target.exists() else None) == old
    install_ratios(found, target, is_worse=is_worse, force=True)
    assert target.read_text() == new


def test_the_examples_in_the_help_can_be_copied(capsys):
    with pytest.raises(SystemExit):
        main(['tune-ratios', '--help'])
    examples = capsys.readouterr().out.partition('examples:')[2]
    assert '--images nuscenes \\\n      --storage' in examples


def test_keyframes_that_the_search_has_seen_are_not_held_out(searched_folder, tmp_path, capsys):
    data = str(searched_folder / 'drivelm.json')
    assert main(words(searched_folder, tmp_path, '--held-out', data)) == EXIT_BAD_INPUT
    assert 'has the same pictures as one that the search uses' in capsys.readouterr().err
