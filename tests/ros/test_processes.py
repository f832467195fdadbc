"""The node, the replay and the demo as processes, as a user starts and stops them."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from camera_rig import CameraRig, wait_until
from converter_bags import capture, WRITERS
import cv2
from p2d_node.bags.writing import write_bag
from p2d_node.cli.node_process import START
from p2d_node.ros.answer_watcher import AnswerWatcher
from p2d_node.ros.conversions import to_nanoseconds
from p2d_node.ros.missing_package import BUILD_COMMAND
from p2d_sim.generated import generate_images
import pytest
import yaml

P2D = [sys.executable, '-m', 'p2d_node.cli.main']
DRIVE = [sys.executable, '-m', 'p2d_node.ros.drive']
NODE = START
"""In the command line of a node that a verb starts."""


@contextmanager
def running(*command: str, log: Path) -> Iterator[subprocess.Popen]:
    with log.open('w') as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)


@pytest.fixture
def parameters(tiny_checkpoint, tmp_path) -> str:
    """A parameter file for a quick node."""
    values = {
        'model': str(tiny_checkpoint),
        'max_new_tokens': 4,
        'questions': ['Is there a car?'],
        'sync': {'deadline_ms': 1000.0},
    }
    path = tmp_path / 'quick.yaml'
    path.write_text(yaml.safe_dump({'/**': {'ros__parameters': values}}))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize('busy', [False, True])
@pytest.mark.faults(
    'Ctrl-C, also while the model works',
    'ends within 2 s, code 0',
)
def test_ctrl_c_ends_the_node_within_two_seconds(node, parameters, tmp_path, busy):
    command = [*DRIVE, '--ros-args', '--params-file', parameters]
    command += ['-p', 'max_new_tokens:=4000'] if busy else []
    rig = CameraRig(node)
    with running(*command, log=tmp_path / 'log') as process:
        wait_until(lambda: rig.heard, 60.0)
        if busy:
            rig.publish_sweep()
            time.sleep(1.0)
        start_s = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert time.monotonic() - start_s < 2.0
    assert 'Traceback' not in (tmp_path / 'log').read_text()


def test_ctrl_c_while_libraries_are_imported_ends_the_node_without_a_word():
    command = [sys.executable, '-v', '-c', 'from p2d_node.ros.drive import main; main()']
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        imported = list(takewhile(lambda line: "import 'torch._C'" not in line, process.stderr))
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(10) == -signal.SIGINT
    assert imported
    assert 'KeyboardInterrupt' not in rest


@pytest.mark.slow
@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (['model:=/nowhere'], "model: got '/nowhere', which is not a folder"),
        (['retention_ratio.CAM_FRONT:=0.0'], 'retention_ratio.CAM_FRONT: got 0.0, allowed'),
        (['retention_ratio.CAM_BACK:=1.5'], 'retention_ratio.CAM_BACK: got 1.5, allowed'),
    ],
)
@pytest.mark.faults(
    'Something that the node needs is wrong at start',
    'one line, code 2',
)
def test_a_node_that_cannot_start_says_why_in_one_line(ros_domain, arguments, reason):
    options = [item for argument in arguments for item in ('-p', argument)]
    result = subprocess.run(
        [*DRIVE, '--ros-args', *options], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert reason in line


@pytest.mark.parametrize(
    ('package', 'step'),
    [
        ('p2d_msgs', f'build it and source the workspace: {BUILD_COMMAND}'),
        ('rclpy', 'source the setup files of ROS 2'),
        ('torch', 'pip install -r requirements/vehicle.txt'),
    ],
)
def test_a_node_without_a_package_names_the_command_that_brings_it(package, step):
    code = f'import sys; sys.modules[{package!r}] = None\n'
    code += 'from p2d_node.ros.drive import main; sys.exit(main())'
    ended = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f'p2d: {package} is not installed; {step}')
    assert ended.stderr.count('\n') == 1


@pytest.mark.slow
def test_replay_brings_every_sweep_of_a_looping_bag_to_the_node(node, parameters, tmp_path):
    bag = tmp_path / 'bag'
    images = list(generate_images(4, period_ms=700.0, height=90, width=160))
    write_bag(images, bag)
    watcher = AnswerWatcher(node)
    with running(*DRIVE, '--ros-args', '--params-file', parameters, log=tmp_path / 'log'):
        wait_until(lambda: node.count_publishers('/p2d/answer'), 60.0)
        options = ['--loop', '--clock', '--duration', '7', '--wait', '60', '--json']
        result = subprocess.run(
            [*P2D, 'replay', '--bag', str(bag), *options],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        published = json.loads(result.stdout)['messages']
        stamps = [i.stamp_ns for i in images if i.camera == 'CAM_FRONT']
        wait_until(lambda: len(watcher.answers) >= published // 12)
    answered = [to_nanoseconds(answer.header.stamp) for answer in watcher.answers]
    assert len(answered) >= 2 * len(stamps)
    assert answered == [stamps[i % len(stamps)] for i in range(len(answered))]


@pytest.mark.slow
@pytest.mark.parametrize('phase', ['waiting', 'playing'])
def test_sigterm_ends_the_replay_without_a_traceback(node, tmp_path, phase):
    write_bag(generate_images(4, height=90, width=160), tmp_path / 'bag')
    command = [*P2D, 'replay', '--bag', str(tmp_path / 'bag'), '--clock', '--loop']
    command += ['--wait', '60' if phase == 'waiting' else '0']
    with running(*command, log=tmp_path / 'log') as process:
        wait_until(lambda: node.count_publishers('/clock'), 30.0)
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    said = (tmp_path / 'log').read_text()
    assert 'Traceback' not in said
    assert (': 0 messages' in said) == (phase == 'waiting')


def processes_of(command: str) -> list[str]:
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            line = (folder / 'cmdline').read_bytes().replace(b'\0', b' ').decode()
            environment = (folder / 'environ').read_bytes()
        except OSError:
            continue
        domain = f'ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]}\0'.encode()
        if command in line and domain in environment:
            found.append(line)
    return found


@pytest.mark.slow
def test_the_demo_leaves_answers_picture_and_plot_and_no_process(ros_domain, tmp_path):
    out = tmp_path / 'out'
    result = subprocess.run(
        [*P2D, 'demo', '--out', str(out)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stderr + (out / 'node.log').read_text()
    answers = [json.loads(line) for line in (out / 'answers.jsonl').read_text().splitlines()]
    assert len({answer['header']['stamp']['sec'] for answer in answers}) >= 8
    assert {answer['model'] for answer in answers} == {'p2d-mini'}
    plans = [a['answer'] for a in answers if a['question'].startswith('What should the ego')]
    assert plans[0].startswith('keep speed')
    assert plans[-1].startswith('brake')
    picture = cv2.imread(str(out / 'kept_tokens.png'))
    assert picture.shape[1] == 1440
    page = (out / 'report.html').read_text()
    assert page.count('src="data:image/jpeg;base64,') >= 9  # the story, and the kept tokens
    assert plans[-1] in page
    assert picture.std() > 10
    assert cv2.imread(str(out / 'story.png')).shape[1] == 4 * 360
    assert (out / 'latency.png').stat().st_size > 5000
    assert processes_of(NODE) == []


@pytest.mark.slow
@pytest.mark.parametrize('after_s', [0.5, 3.0, 7.0])
@pytest.mark.parametrize('sign', [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_broken_off_leaves_no_process(ros_domain, tmp_path, after_s, sign):
    command = [*P2D, 'demo', '--out', str(tmp_path / 'out')]
    with running(*command, log=tmp_path / 'log') as process:
        time.sleep(after_s)
        process.send_signal(sign)
        process.wait(15)
        wait_until(lambda: processes_of(NODE) == [], 5.0)
    assert process.returncode != 0


def test_the_latency_of_the_whole_node_is_measured_through_ros(ros_domain, tiny_checkpoint):
    command = [*P2D, 'bench', 'node', '--model', str(tiny_checkpoint), '--json', '--hz', '2']
    command += ['--sweeps', '4', '--warm-up', '1', '--max-new-tokens', '2', '--questions', '3']
    command += ['--device', 'cpu', '--threads', '3']
    result = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stderr[-500:]
    report = json.loads(result.stdout)
    assert 1 <= report['sweeps_answered'] <= 3
    assert (report['tokens_kept'], report['tokens_total']) == (48, 486)
    assert (report['device'], report['torch_threads']) == (report['cpu'], 3)
    stages = report['stages']
    assert 0 < stages['prefill_ms']['p50'] < stages['total_ms']['p50'] <= stages['total_ms']['p95']
    assert report['sweeps_complete'] == 4
    assert report['answers_per_s'] == pytest.approx(3 * report['sweeps_per_s'])
    assert 1.0 < report['sweeps_per_s'] < 3.0


@pytest.mark.slow
@pytest.mark.parametrize(
    'converter', ['nuscenes2bag', 'nuscenes_to_ros2bag_chris7462', 'foxglove']
)
def test_the_node_is_measured_on_the_topics_that_the_bag_has(
    ros_domain, tiny_checkpoint, tmp_path, converter
):
    bag = WRITERS[converter](tmp_path, capture(4, period_ms=1100.0))
    command = [*P2D, 'bench', 'node', '--model', str(tiny_checkpoint), '--json', '--bag', str(bag)]
    command += ['--warm-up', '1', '--max-new-tokens', '2', '--device', 'cpu', '--threads', '1']
    result = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stderr[-500:]
    report = json.loads(result.stdout)
    assert (report['sweeps_complete'], report['sweeps_answered']) == (4, 3)
    assert report['sweeps_per_s'] == pytest.approx(1 / 1.1, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize('sign', [signal.SIGINT, signal.SIGKILL])
def test_a_benchmark_that_is_broken_off_leaves_no_process(
    ros_domain, tiny_checkpoint, tmp_path, sign
):
    command = [*P2D, 'bench', 'node', '--model', str(tiny_checkpoint), '--device', 'cpu']
    with running(*command, log=tmp_path / 'log') as process:
        wait_until(lambda: processes_of(NODE) != [], 60.0)
        time.sleep(1.0)
        process.send_signal(sign)
        process.wait(15)
        wait_until(lambda: processes_of(NODE) == [], 5.0)
    assert process.returncode == (-sign if sign == signal.SIGKILL else 130)
    assert 'Traceback' not in (tmp_path / 'log').read_text()
