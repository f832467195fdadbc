"""The help of every command starts without the libraries that only its work needs."""

from __future__ import annotations

import os
from pathlib import Path
import subprocess
import sys

import p2d_sim
import pytest

SIM = Path(p2d_sim.__file__).parents[1]
HEAVY = ('torch', 'transformers', 'cv2', 'rclpy')


@pytest.mark.parametrize('command', ['cameras', 'world', 'train', 'evaluate'])
def test_help_imports_neither_torch_nor_opencv_nor_ros(command: str) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(SIM)!r})
from p2d_sim.cli.{command} import main
try:
    main(['--help'])
except SystemExit as end:
    assert end.code == 0
assert not set({HEAVY!r}) & set(sys.modules), set({HEAVY!r}) & set(sys.modules)
"""
    result = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert f'usage: {command}' in result.stdout


@pytest.mark.parametrize('command', ['train', 'evaluate'])
def test_a_model_that_is_missing_is_named_in_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from p2d_sim.cli import evaluate, train

    missing = str(tmp_path / 'missing')
    if command == 'train':
        assert train.main(['--run', str(tmp_path / 'run'), '--smoke', '--start', missing]) == 2
    else:
        assert evaluate.main(['--model', missing]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    option = '--start' if command == 'train' else '--model'
    assert line.startswith(f'{command}: {option}: {missing} holds no trained model')


@pytest.mark.attack(
    'the folder of a training run or of its model holds links to files of the user, or a pipe',
    'refused before anything is written',
)
@pytest.mark.parametrize('kind', ['symbolic', 'hard', 'pipe'])
@pytest.mark.parametrize('option', ['--run', '--out'])
def test_links_in_the_folders_of_a_run_are_refused(
    option: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from p2d_sim.cli import train

    folder = tmp_path / 'folder'
    folder.mkdir()
    if kind == 'hard':
        (tmp_path / 'victim').touch()
        (folder / 'log.jsonl').hardlink_to(tmp_path / 'victim')
    elif kind == 'pipe':
        os.mkfifo(folder / 'log.jsonl')
    else:
        (folder / 'log.jsonl').symlink_to(tmp_path / 'victim')
    words = {'--run': str(tmp_path / 'run'), '--out': str(tmp_path / 'out'), option: str(folder)}
    assert train.main([word for pair in words.items() for word in pair]) == 2
    assert f'train: {option}: ' in capsys.readouterr().err
    victims = {'victim': 0} if kind == 'hard' else {}
    assert {path.name for path in tmp_path.iterdir()} == {'folder', *victims}
    assert {path.name: path.stat().st_size for path in tmp_path.glob('victim')} == victims


@pytest.mark.attack(
    'the folder of a training run that names weights of another folder as its state, or is cut',
    'refused before anything is read',
)
@pytest.mark.parametrize(
    'text',
    [
        '{"stage": "joint", "step": 1, "spent_s": 1.0, "state": "../joint-000001"}',
        '{"stage": "../joint", "step": 1, "spent_s": 1.0, "state": "../joint-000001"}',
        '{"stage": "joint", "st',
    ],
)
def test_the_progress_of_a_run_is_checked(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from p2d_sim.cli import train

    (tmp_path / 'latest.json').write_text(text)
    assert train.main(['--run', str(tmp_path), '--resume']) == 2
    assert f'train: --run: {tmp_path / "latest.json"} is not ' in capsys.readouterr().err
