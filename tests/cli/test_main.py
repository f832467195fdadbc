"""`p2d` as a user types it; what needs DDS is in tests/ros."""

from dataclasses import asdict, replace
import json
import math
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import cv2
from p2d_node.benchmarks.measuring import processor_name
from p2d_node.checkpoints.devices import default_num_threads, FIRST_NUM_THREADS
from p2d_node.cli import bench_node
from p2d_node.cli.main import EXIT_BAD_INPUT, main, make_parser, parse, VERBS
from p2d_node.cli.verb import VerbGroup
from p2d_node.cli.verbs import HELP_GROUPS
from p2d_node.cli.verbs.bench import NodeOptions
from p2d_node.config import DriveConfig
from p2d_node.errors import P2dError
from p2d_node.records import NUSCENES_CAMERAS, StageTimes
import pytest
from sweeps import picture
import torch

NEEDS_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU'),
)


def list_verbs(verbs=VERBS):
    """Return the words of every verb, such as ['bench', 'select']."""
    words = []
    for verb in verbs:
        nested = list_verbs(verb.verbs) if isinstance(verb, VerbGroup) else []
        words += [[verb.name], *([verb.name, *rest] for rest in nested)]
    return words


@pytest.mark.parametrize('words', list_verbs(), ids=' '.join)
def test_every_verb_has_help_with_an_example(words, capsys):
    with pytest.raises(SystemExit, match='0'):
        main([*words, '--help'])
    examples = re.split('examples?:', capsys.readouterr().out)[1]
    assert f'p2d {" ".join(words)}' in examples


def test_help_shows_every_verb_in_its_group_with_a_command_to_begin_with(capsys):
    with pytest.raises(SystemExit):
        main(['--help'])
    lines = capsys.readouterr().out.splitlines()
    for heading, example, verbs in HELP_GROUPS:
        start = lines.index(f'{heading}:  {example}')
        block = lines[start + 1 : [*lines, ''].index('', start)]
        assert [line.split()[0] for line in block if line[2] != ' '] == [v.name for v in verbs]
        parse(example.split()[1:])
    assert max(map(len, lines)) <= 80


@pytest.mark.slow
@pytest.mark.parametrize('example', [example for _, example, _ in HELP_GROUPS[1:]])
def test_the_commands_to_begin_with_work(example, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = example.replace('--duration 10', '--duration 1').split()[1:]
    words += ['--engine-dir', 'engines'] if 'engine' in words[0] else []
    assert main(words) == 0


def test_help_of_every_verb_imports_none_of_the_large_libraries():
    program = f"""
import contextlib, io, sys, time
from p2d_node.cli.main import main, parse
from p2d_node.cli.verbs import HELP_GROUPS
for words in {[[], *list_verbs()]!r}:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([*words, '--help'])
large = 'torch', 'transformers', 'matplotlib', 'cv2', 'rclpy', 'rosbags', 'optuna', 'rich'
print(*[name for name in large if name in sys.modules])
print(time.process_time())
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=True
    )
    imported, seconds = done.stdout.splitlines()
    assert imported == ''
    assert float(seconds) < 1.0  # all 20 of them; one alone takes less than 0.5 s
    assert done.stderr == ''


def test_every_verb_has_a_function_that_runs_it():
    functions = {verb.load() for verb in VERBS if not isinstance(verb, VerbGroup)}
    assert all(callable(function) for function in functions)
    assert len(functions) == len([v for v in VERBS if not isinstance(v, VerbGroup)])


def write_keyframe(root):
    """Write a DriveLM file with one keyframe of six images into `root`."""
    paths = {}
    for number, camera in enumerate(NUSCENES_CAMERAS):
        name = f'samples/{camera}/n015__{camera}__{1_532_402_927_600_000 + number}.jpg'
        (root / name).parent.mkdir(parents=True)
        cv2.imwrite(str(root / name), picture(number))
        paths[camera] = f'../nuscenes/{name}'
    questions = {'perception': [{'Q': 'Is there a car?', 'A': 'Yes.', 'tag': [2]}]}
    keyframe = {'QA': questions, 'key_object_infos': {}, 'image_paths': paths}
    scene = {'scene_description': '', 'key_frames': {'frame': keyframe}}
    (root / 'drivelm.json').write_text(json.dumps({'scene': scene}))
    return root / 'drivelm.json'


def test_make_bag_says_what_it_made(tmp_path, capsys):
    write_keyframe(tmp_path)
    words = ['--drivelm', str(tmp_path / 'drivelm.json'), '--images', str(tmp_path)]
    assert main(['make-bag', *words, '--out', str(tmp_path / 'bag'), '--json']) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == {'bag': str(tmp_path / 'bag'), 'images': 6, 'storage': 'mcap'}


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (
            ['make-bag', '--drivelm', 'no.json', '--images', '.', '--out', 'x'],
            'no.json is missing',
        ),
        (['make-bag', '--drivelm', 'no.json', '--out', 'x'], '--images is missing'),
        (['make-bag', '--nuscenes', 'nowhere', '--out', 'x'], "--nuscenes: got 'nowhere', which"),
        (
            ['make-bag', '--drivelm', 'x', '--images', '.', '--scene', 's', '--out', 'x'],
            '--scene: got s, which has no effect without --nuscenes; leave it out',
        ),
        (['bench', 'node', '--bag', 'x', '--hz', '2'], '--hz: got 2.0, which has no effect with'),
        (['bench', 'prefill', '--text-tokens', '99999'], '--text-tokens: got 99999, allowed: 1'),
        (['watch', '--duration', 'nan'], '--duration: got nan, allowed: above 0'),
        (['demo', '--sample', 'x', '--seed', '1'], '--seed: got 1, which has no effect with --s'),
        (
            ['evaluate', '--data', 'x', '--predictions', 'y', '--model', 'z'],
            '--model: got z, which has no effect with --predictions',
        ),
        (
            ['build-engine', '--backend', 'onnxruntime', '--workspace-mib', '1'],
            '--workspace-mib: got 1, which has no effect with --backend onnxruntime',
        ),
        (['replay', '--bag', 'nowhere'], "--bag: got 'nowhere', which does not exist"),
        (['replay', '--bag', 'nowhere', '--rate', '0'], '--rate: got 0, allowed: above 0'),
        (['replay', '--bag', 'x', '--wait', 'nan'], '--wait: got nan, allowed: 0 to 86400'),
        (['replay', '--bag', 'x', '--duration', '-1'], '--duration: got -1, allowed: above 0'),
        (['replay', '--bag', 'x', '--duration', 'nan'], '--duration: got nan, allowed: above 0'),
        (
            ['make-bag', '--synthetic', 'cruise', '--out', 'x', '--seed', '-1'],
            '--seed: got -1, allowed: 0 or more',
        ),
        (['demo', '--model', ''], '--model: got an empty text; leave it out'),
        (['inspect-engine', '.'], 'is not an engine: it has no manifest.json'),
        (['demo', '--retention', '1.5'], '--retention: got 1.5, allowed: 0.001 to 1'),
        (['bench', 'node', '--sweeps', '2'], '--sweeps: got 2 with --warm-up 3'),
        (['bench', 'node', '--retention-ratio', '2'], '--retention-ratio: got 2, allowed'),
        (['bench', 'node', '--max-new-tokens', '0'], '--max-new-tokens: got 0, allowed: 1'),
        (['bench', 'node', '--encoder-backend', 'x'], "--encoder-backend: got 'x', allowed: auto"),
        (['bench', 'node', '--device', 'bogus'], "device: got 'bogus', allowed: auto"),
        (['bench', 'node', '--threads', '0'], '--threads: got 0, allowed: 1 to 1024'),
        (['demo', '--out', '/dev/null'], '--out: /dev/null cannot be written: File exists'),
        (['demo', '--out', '/dev/null/x'], '--out: /dev/null/x cannot be written: Not a dir'),
        (['demo', '--model', 'nowhere'], "model: got 'nowhere', which is not a folder"),
        (['demo', '--sample', 'nowhere'], '--sample: got nowhere, allowed: a folder with'),
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
    verb = ' '.join(arguments[: 2 if arguments[0] == 'bench' else 1])
    assert line.startswith(f'p2d {verb}: ')
    assert reason in line
    assert list(tmp_path.iterdir()) == []


def test_an_empty_path_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        main(['demo', '--out', ''])
    assert caught.value.code == EXIT_BAD_INPUT
    assert '--out: got an empty text, allowed: a path' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments',
    [
        ['make-bag', '--synthetic', 'no', '--out', 'a/b/bag'],
        ['evaluate', '--images', '.', '--out', 'a/b', '--model', 'nowhere'],
        ['evaluate', '--images', '.', '--out', 'a/b', '--scheduler', 'tcp://127.0.0.1:1'],
    ],
)
def test_a_refused_command_leaves_no_files_behind(arguments, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr('p2d_node.evaluation.answer_workers.CONNECT_TIMEOUT_S', 0.5)
    data = write_keyframe(tmp_path)
    work = tmp_path / 'work'
    work.mkdir()
    monkeypatch.chdir(work)
    if arguments[0] == 'evaluate':
        arguments = [*arguments, '--data', str(data)]
        arguments[arguments.index('.')] = str(tmp_path)
    assert main(arguments) == EXIT_BAD_INPUT
    assert f'p2d {arguments[0]}: ' in capsys.readouterr().err
    assert list(work.iterdir()) == []


def test_a_model_of_an_unknown_family_is_refused_before_the_node_starts(
    tiny_checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, 'other')
    config = json.loads(Path('other/config.json').read_text())
    Path('other/config.json').write_text(json.dumps({**config, 'model_type': 'bert'}))
    assert main(['demo', '--model', 'other']) == EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("p2d demo: --model: other: got family 'bert', allowed: llava_onevision")
    assert not Path('demo_output').exists()


def test_other_libraries_print_nothing_to_the_terminal(tmp_path):
    words = ['bench', 'questions', '--shape', 'huge']  # imports torch and transformers
    done = subprocess.run(
        [sys.executable, '-m', 'p2d_node.cli.main', *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == EXIT_BAD_INPUT
    assert done.stderr == "p2d bench questions: --shape: got 'huge', allowed: drivemm, scaled\n"


def test_without_ros_a_verb_that_needs_it_says_so():
    program = """
import sys
from p2d_node.cli.main import main
sys.modules['rclpy'] = None
sys.exit(main(['replay', '--bag', 'x']))
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_BAD_INPUT
    assert 'rclpy is not installed; source the setup files' in done.stderr


@pytest.mark.parametrize('output', ['/dev/full', 'pipe'])
def test_output_that_cannot_be_written_is_one_line(tmp_path, output):
    """As if its reader has ended, like `head`, or its disk is full."""
    if output == 'pipe':
        reader, file = os.pipe()
        os.close(reader)
    else:
        file = os.open(output, os.O_WRONLY)
    write_keyframe(tmp_path)
    words = ['make-bag', '--drivelm', 'drivelm.json', '--images', '.', '--out', 'bag']
    code = f'import sys; from p2d_node.cli.main import main; sys.exit(main({words}))'
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        stdout=file,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(file)
    assert done.returncode == 1
    reason = 'Broken pipe' if output == 'pipe' else 'No space left on device'
    assert done.stderr == f'p2d make-bag: standard output: {reason}\n'


def test_a_missing_verb_shows_the_verbs(capsys):
    with pytest.raises(SystemExit, match='2'):
        make_parser().parse_args([])
    assert 'VERB' in capsys.readouterr().err


def stamped(seconds: float) -> SimpleNamespace:
    sec, rest = divmod(seconds, 1.0)
    return SimpleNamespace(stamp=SimpleNamespace(sec=int(sec), nanosec=int(rest * 1e9)))


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=NEEDS_GPU)])
def test_the_figures_of_the_node_carry_the_device_and_the_threads_that_it_was_given(device):
    args = NodeOptions(device=device)
    config = bench_node._config(args, DriveConfig().cameras)
    given = bench_node._parameters(config)
    assert given['device'] == device
    assert given['num_threads'] == max(1, FIRST_NUM_THREADS - 1)
    answer = SimpleNamespace(model='m', encoder='torch', tokens_kept=[1], tokens_total=[9])
    times = asdict(StageTimes(total_ms=500.0))
    timings = [
        SimpleNamespace(**times, header=header, age_at_publish_ms=600.0)
        for header in (stamped(10.0), stamped(11.0), stamped(12.0), stamped(14.0))
    ]
    report = bench_node._to_report(replace(args, warm_up=1), config, timings, answer, 5)
    assert (report['sweeps_complete'], report['sweeps_answered']) == (5, 3)
    assert report['sweeps_per_s'] == pytest.approx(3 / 4.0)
    assert report['answers_per_s'] == pytest.approx(3 / 4.0)
    cold = bench_node._to_report(replace(args, warm_up=0, questions=2), config, timings, answer, 5)
    assert cold['sweeps_per_s'] == pytest.approx(4 / 4.5)
    assert cold['answers_per_s'] == pytest.approx(8 / 4.5)
    name = processor_name() if device == 'cpu' else torch.cuda.get_device_name(device)
    assert report['device'] == name
    assert report['torch_threads'] == given['num_threads']


@pytest.mark.attack(
    'a peer configures the node again and again, or once with another `num_threads`',
    'the default is that of the start of the process',
)
def test_the_default_number_of_threads_does_not_follow_the_last_one():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(FIRST_NUM_THREADS + 5)
        assert default_num_threads() == max(1, FIRST_NUM_THREADS - 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.attack(
    'another node publishes times under the name of the one that `p2d bench node` measures',
    'numbers that are no times are left out; stamps of the future end the command in one line',
)
@pytest.mark.parametrize('stamps', [[2147483647.0] * 3, [5.0, 4.0]])
def test_times_of_another_node_end_a_benchmark_in_one_line(stamps):
    times = asdict(StageTimes(total_ms=500.0))
    timings = [
        SimpleNamespace(**times, header=stamped(seconds), age_at_publish_ms=0.0)
        for seconds in stamps
    ]
    with pytest.raises(P2dError, match='end other nodes that publish /p2d/timing'):
        bench_node._sweeps_per_s(timings, 1)
    assert bench_node._is_finite(timings[0])
    assert not bench_node._is_finite(SimpleNamespace(**times | {'decode_ms': math.nan}))
