"""The help of every command starts without the libraries that only its work needs."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
import pickle
import shutil
import subprocess
import sys
from typing import Any

import p2d_sim
import pytest

MINI = Path(__file__).parents[2] / 'models' / 'p2d-mini'
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
    'a model to train on or to evaluate with code of its own, pickled weights or odd settings',
    'checked as a checkpoint of the node is, before anything is loaded; one line',
)
@pytest.mark.parametrize('kind', ['code', 'pickle', 'outside', 'layers', 'family', 'type'])
@pytest.mark.parametrize('command', ['train', 'evaluate'])
def test_a_hostile_model_is_refused_in_one_line(
    command: str,
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from p2d_sim.cli import evaluate, train

    folder = tmp_path / 'model'
    shutil.copytree(MINI, folder)
    mark = tmp_path / 'mark'
    (folder / 'code.py').write_text(f'open({str(mark)!r}, "w")\nclass Tokenizer: pass\n')
    spoil(folder, kind)
    monkeypatch.setattr('sys.stdin', io.StringIO('y\n' * 9))
    if command == 'train':
        words = ['--run', str(tmp_path / 'run'), '--smoke', '--start', str(folder)]
        assert train.main(words) == 2
    else:
        assert evaluate.main(['--model', str(folder), '--questions', '1']) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'{folder} holds no trained model: ' in line
    assert not mark.exists()
    assert not (tmp_path / 'run').exists()


def spoil(folder: Path, kind: str) -> None:
    weights = folder / 'model.safetensors'
    changes: dict[str, Any] = {
        'layers': {'text_config': {'num_hidden_layers': 10**9}},
        'family': {'model_type': 'llava'},
        'type': {'vision_config': {'image_size': 'large'}},
    }
    if kind == 'code':
        edit_json(
            folder / 'tokenizer_config.json',
            {'auto_map': {'AutoTokenizer': ['code.Tokenizer', None]}, 'tokenizer_class': 'Own'},
        )
    elif kind == 'pickle':
        weights.unlink()
        (folder / 'pytorch_model.bin').write_bytes(pickle.dumps({}))
    elif kind == 'outside':
        weights.rename(folder.parent / 'other.safetensors')
        index = {'weight_map': {'lm_head.weight': '../other.safetensors'}}
        (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    else:
        edit_json(folder / 'config.json', changes[kind])


def edit_json(path: Path, change: dict[str, Any]) -> None:
    content = json.loads(path.read_text())
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            content[key] |= value
        else:
            content[key] = value
    path.write_text(json.dumps(content))


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
        '{"stage": "joint", "step": -1, "spent_s": 1.0, "state": "joint--00001"}',
        '{"stage": "joint", "step": 1, "spent_s": NaN, "state": "joint-000001"}',
        f'{{"stage": "joint", "step": {10**30}, "spent_s": 1.0, "state": "joint-{10**30}"}}',
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


@pytest.mark.attack(
    'the state of a training run is a pipe, a link, a damaged file or one of another model',
    'one line; nothing is waited for',
)
@pytest.mark.timeout(60)
@pytest.mark.parametrize('kind', ['pipe', 'link', 'damaged', 'other', 'missing'])
def test_a_damaged_state_of_a_run_is_refused(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from p2d_sim.cli import train

    progress = {'stage': 'joint', 'step': 1, 'spent_s': 1.0, 'state': 'joint-000001'}
    (tmp_path / 'latest.json').write_text(json.dumps(progress))
    weights = tmp_path / 'joint-000001' / 'weights.safetensors'
    weights.parent.mkdir()
    if kind == 'pipe':
        os.mkfifo(weights)
    elif kind == 'link':
        weights.symlink_to(MINI / 'model.safetensors')
    elif kind == 'other':
        shutil.copy(MINI / 'model.safetensors', weights)
    elif kind == 'damaged':
        weights.write_bytes(b'{}')
    assert train.main(['--run', str(tmp_path), '--resume', '--smoke']) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('train: --run: ')
    assert str(weights) in line
    assert kind != 'link' or 'a symbolic or hard link' in line


@pytest.mark.attack(
    'the folder of a training run holds folders of the user with the names of a stage',
    'a checkpoint replaces none but that which the run itself has named before, and no other file',
)
def test_a_checkpoint_removes_the_one_before_it_and_nothing_else(tmp_path: Path) -> None:
    from p2d_sim.training.state import read_progress, save_state
    import torch

    photos = tmp_path / 'joint-venture' / 'photo.jpg'
    other = tmp_path / 'joint-000007' / 'photo.jpg'
    for path in (photos, other):
        path.parent.mkdir()
        path.touch()
    module = torch.nn.Linear(1, 1)
    for step in (1, 2, 3):
        save_state(tmp_path, module, [], {'stage': 'joint', 'step': step, 'spent_s': 1.0})
        (tmp_path / 'joint-000002' / 'note.txt').touch() if step == 2 else None
    progress = read_progress(tmp_path)
    assert progress is not None
    assert progress['state'] == 'joint-000003'
    names = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert names == {'joint-venture', 'joint-000007', 'joint-000002', 'joint-000003'}
    assert photos.exists()
    assert other.exists()
    assert [path.name for path in (tmp_path / 'joint-000002').iterdir()] == ['note.txt']


def test_two_trainings_in_one_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from p2d_node.whole_folders import locked
    from p2d_sim.cli import train

    with locked(tmp_path, 'busy'):
        assert train.main(['--run', str(tmp_path), '--smoke', '--workers', '0']) == 2
    assert 'another process trains there' in capsys.readouterr().err
