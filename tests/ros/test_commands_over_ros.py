"""The commands of the documents that need a node, and those of `ros2`, as processes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import threading

from camera_rig import CameraRig, wait_until
from documented_commands import commands_that, RunOverRos, words_in_samples
from documented_samples import link_samples, SCENE
from p2d_node.cli.main import main
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros.answer_watcher import AnswerWatcher
import pytest
from tiny_qwen3 import write_byte_qwen3_vl
import yaml

BETWEEN_SWEEPS_S = 0.5


def nothing() -> None:
    """What happens while a command runs, if nothing has to."""


def run_command(
    *words: str, cwd: Path | None = None, meanwhile: Callable[[], object] = nothing
) -> str:
    """Run a command to its end, which is a good one; returns its output."""
    with subprocess.Popen(
        words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            for _ in range(200):
                meanwhile()
                try:
                    output = process.communicate(timeout=BETWEEN_SWEEPS_S)[0]
                except subprocess.TimeoutExpired:
                    continue
                assert process.returncode == 0, output
                return output
        finally:
            process.kill()
    return pytest.fail(f'{words} does not end')


@contextmanager
def publishing(rig: CameraRig) -> Iterator[None]:
    """Publish sweeps until the end of the block."""
    over = threading.Event()

    def publish() -> None:
        while not over.wait(BETWEEN_SWEEPS_S):
            rig.publish_sweep()

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    yield
    over.set()
    thread.join(5.0)


@pytest.mark.slow
@pytest.mark.parametrize(('command', 'add'), commands_that(RunOverRos))
def test_the_command_runs_beside_a_node(
    documented_samples, tmp_path, monkeypatch, capsys, drive, rig, command, add
):
    words = words_in_samples(command, add)
    link_samples(documented_samples, tmp_path, words)
    monkeypatch.chdir(tmp_path)
    drive()
    wait_until(lambda: rig.heard)
    with publishing(rig):
        assert main(words[1:]) == 0
    if '--json' in words:
        assert '"answer"' in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo_plays_data_of_drivelm(ros_domain, documented_samples, tmp_path):
    link_samples(documented_samples, tmp_path, ())
    data = ('--data', 'v1_1_val_nus.json', '--images', 'nuscenes')
    given = ('--model', 'models/drivemm', '--retention', '0.25', '--out', 'demo_output')
    words = ('demo', *data, *given, '--max-new-tokens', '4', '--rate', '10')
    run_command(sys.executable, '-m', 'p2d_node.cli.main', *words, cwd=tmp_path)
    assert (tmp_path / 'demo_output' / 'report.html').is_file()


@pytest.mark.slow
def test_the_demo_plays_clips_to_a_model_that_was_trained_on_them(ros_domain, tmp_path):
    cameras = [[name, name] for name in NUSCENES_CAMERAS]
    layout = {'camera_names': cameras, 'frames_per_camera': 2, 'frame_interval_ms': 100}
    model = write_byte_qwen3_vl(tmp_path / 'laid-out', layout=layout)
    words = ('demo', '--model', str(model), '--max-new-tokens', '2', '--rate', '10')
    output = run_command(sys.executable, '-m', 'p2d_node.cli.main', *words, cwd=tmp_path)
    assert 'frames per camera: 2, 1000 ms apart' in output
    answers = (tmp_path / 'demo_output' / 'answers.jsonl').read_text().splitlines()
    assert json.loads(answers[-1])['num_frames'] == [2] * 6


@pytest.fixture
def ros2(ros_domain, monkeypatch) -> Iterator[Callable[..., str]]:
    """The command `ros2` of a distribution, without the processes that it leaves behind."""
    if shutil.which('ros2') is None:
        pytest.skip('ros2 comes with a ROS distribution only')
    monkeypatch.setenv('PYTHONUNBUFFERED', '1')

    def call(*words: str, **options: object) -> str:
        return run_command('ros2', *words, **options)

    yield call
    call('daemon', 'stop')


@contextmanager
def launched(*words: str, log: Path) -> Iterator[subprocess.Popen]:
    """Run `ros2 launch` until the end of the block, which Ctrl-C brings."""
    with log.open('w') as file:
        process = subprocess.Popen(
            ['ros2', 'launch', *words], stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture
def quick(tmp_path) -> str:
    """A parameter file for short answers."""
    values = {'max_new_tokens': 4, 'sync': {'deadline_ms': 1000.0}}
    path = tmp_path / 'quick.yaml'
    path.write_text(yaml.safe_dump({'/**': {'ros__parameters': values}}))
    return str(path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_launched_node_obeys_the_documented_commands(
    ros2, node, rig, tiny_checkpoint, quick, tmp_path
):
    drive = ('p2d_node', 'drive.launch.py')
    given = (f'model:={tiny_checkpoint}', 'dataset:=nuscenes', f'params_file:={quick}')
    with launched(*drive, *given, log=tmp_path / 'log'):
        wait_until(lambda: rig.heard, 60.0)
        # The daemon of `ros2` starts with its first command and discovers the node after it.
        wait_until(lambda: '/p2d/answer' in ros2('topic', 'list'), 60.0)
        wait_until(lambda: '/p2d' in ros2('node', 'list').split(), 60.0)
        assert '/p2d: pipeline' in ros2('topic', 'echo', '--once', '/diagnostics')
        echo = ('topic', 'echo', '--once', '/p2d/answer')
        assert 'answer:' in ros2(*echo, meanwhile=rig.publish_sweep)
        name = 'retention_ratio.CAM_FRONT'
        assert 'successful' in ros2('param', 'set', '/p2d', name, '0.25')
        question = "{question: 'Is the light red?'}"
        ask = ('service', 'call', '/p2d/ask', 'p2d_msgs/srv/Ask', question)
        assert 'success=True' in ros2(*ask, meanwhile=rig.publish_sweep)
        for transition in ('deactivate', 'cleanup'):
            assert 'successful' in ros2('lifecycle', 'set', '/p2d', transition)
        assert 'successful' in ros2('param', 'set', '/p2d', 'model', str(tiny_checkpoint))
        for transition in ('configure', 'activate'):
            assert 'successful' in ros2('lifecycle', 'set', '/p2d', transition)
        dump = tmp_path / 'dump.yaml'
        dump.write_text(ros2('param', 'dump', '/p2d'))
    values = yaml.safe_load(dump.read_text())['/p2d']['ros__parameters']
    assert values['retention_ratio']['CAM_FRONT'] == 0.25
    with launched(*drive, f'params_file:={dump}', log=tmp_path / 'second_log'):
        wait_until(lambda: rig.heard, 60.0)
        assert '0.25' in ros2('param', 'get', '/p2d', name)


@pytest.mark.slow
def test_the_launch_of_a_replay_ends_with_the_bag(
    ros2, node, documented_samples, tiny_checkpoint, quick
):
    watcher = AnswerWatcher(node)
    given = (f'bag:={documented_samples / SCENE}', f'model:={tiny_checkpoint}')
    output = ros2('launch', 'p2d_node', 'replay.launch.py', *given, f'params_file:={quick}')
    assert 'the bag has been played' in output
    assert watcher.answers
