"""Every command in a document is run, here or by another test, or the reason why not is known."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
import subprocess
import sys

from documented_commands import (
    ByTest,
    command_lines,
    commands_that,
    HOW,
    how_it_runs,
    OF_A_KIND,
    ROOT,
    Run,
    words_in_samples,
)
from documented_samples import link_samples
from p2d_node.cli.main import main
import pytest


def run_words(words: list[str]) -> int:
    """Run a command, in this process if it is ours; returns its exit code."""
    match words:
        case ['p2d', *rest]:
            return main(rest)
        case ['ros2', 'run', 'p2d_sim', program, *rest]:
            return importlib.import_module(f'p2d_sim.cli.{program}').main(rest)
        case [python, '-c', program] if Path(python).name.startswith('python'):
            command = [sys.executable, '-c', program]
            return subprocess.run(command, check=False, timeout=100).returncode
    return pytest.fail(f'{words}: no test knows how to run this')


def test_every_documented_command_has_an_entry():
    assert [command for command in command_lines() if how_it_runs(command) is None] == []


def test_every_entry_is_documented():
    lines = command_lines()
    assert [command for command in HOW if command not in lines] == []
    assert [start for start in OF_A_KIND if not any(c.startswith(start) for c in lines)] == []


def test_a_new_command_would_be_found():
    assert how_it_runs('p2d make-coffee') is None
    assert how_it_runs('sudo apt install coffee') is not None


@pytest.mark.parametrize(
    'name', sorted({how.name for how in HOW.values() if isinstance(how, ByTest)})
)
def test_the_test_that_runs_a_command_is_there(name):
    file, _, function = name.partition('::')
    assert f'\ndef {function}(' in (ROOT / file).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(('command', 'add'), commands_that(Run))
def test_the_command_runs(documented_samples, tmp_path, monkeypatch, command, add):
    words = words_in_samples(command, add)
    link_samples(documented_samples, tmp_path, words)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('COLUMNS', '200')
    before = set(os.listdir())
    assert run_words(words) == 0
    if '--out' in words:
        assert Path(words[words.index('--out') + 1]).exists()
        assert set(os.listdir()) > before
