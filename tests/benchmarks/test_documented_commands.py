"""Every command in a document is one that exists: its program, its words, and the files it names.

`test_documents.py` checks the options of `p2d VERB` commands, which are left out here.
"""

from __future__ import annotations

from collections.abc import Callable
import importlib
import itertools
from pathlib import Path
import re
import shlex

from p2d_node.cli.main import main
from p2d_node.config_parameters import list_parameters
from p2d_node.records import NUSCENES_CAMERAS
import pytest
from test_containers import services
from test_documents import CODE_BLOCK, DOCUMENTS, ROOT

TOPICS = ('/p2d/answer', '/diagnostics')
SHELL = ('cd', 'export', 'for', 'done', 'git', 'mkdir', 'source', 'sudo')
OF_OTHERS = (
    'colcon',
    'dask',
    'hf',
    'journalctl',
    'python',
    'python3',
    'rerun',
    'rosbags-convert',
    'rosdep',
)
"""Programs of others; what we say of them was run by hand or is run by test_packages.py."""

TRANSITIONS = ('configure', 'activate', 'deactivate', 'cleanup', 'shutdown')


def commands() -> list[tuple[str, ...]]:
    """Every command of a block of shell in a document, as its words."""
    blocks = [block for path in DOCUMENTS for block in CODE_BLOCK.findall(path.read_text())]
    shell = [block for block in blocks if block.startswith('```bash')]
    lines = '\n'.join(shell).replace('\\\n', ' ').splitlines()
    found = {tuple(shlex.split(line, comments=True)) for line in lines if line[:3] != '```'}
    split = {part for words in found for part in split_at_and(words)}
    return sorted(words for words in split if words[0] not in ('', 'p2d'))


def split_at_and(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The commands that `&&` joins, without variables that are set before a command."""
    joined = '\0'.join(words).split('\0&&\0')
    return [tuple(re.sub(r'^([A-Z]+=[^\0]*\0)+', '', text).split('\0')) for text in joined]


def check_verb(run: Callable[[list[str]], object], words: list[str], capsys) -> None:
    """Check that a program of ours has these options."""
    verb = [word for word in words[:2] if re.fullmatch('[a-z][a-z-]*', word)]
    with pytest.raises(SystemExit, match='0'):
        run([*verb[: 2 if verb[:1] == ['bench'] else 1], '--help'])
    printed = capsys.readouterr().out
    options = [word for word in words if word.startswith('--')]
    assert [option for option in options if not re.search(rf'{option}\b', printed)] == []


def check_launch(file: str, arguments: list[str]) -> None:
    text = (ROOT / 'launch' / file).read_text()
    declared = re.findall(r"DeclareLaunchArgument\(\s*'(\w+)'", text)
    assert {argument.partition(':=')[0] for argument in arguments} <= set(declared)


def check_ros2(words: list[str], capsys) -> None:
    match words:
        case ['launch', 'p2d_node', file, *arguments]:
            check_launch(file, arguments)
        case ['launch', file]:
            assert (ROOT / file).is_file()
        case ['lifecycle', 'set', '/p2d', transition]:
            assert transition in TRANSITIONS
        case ['run', 'p2d_node', 'p2d', *rest]:
            check_verb(main, rest, capsys)
        case ['run', 'p2d_sim', program, *options]:
            run = importlib.import_module(f'p2d_sim.cli.{program}').main
            check_verb(run, [word for word in options if word.startswith('--')], capsys)
        case ['param', 'set', '/p2d', name, _, *_]:
            assert name in {parameter.name for parameter in list_parameters(NUSCENES_CAMERAS)}
        case ['topic', 'echo', *options, topic]:
            assert topic in TOPICS
            assert set(options) <= {'--once'}
        case ['service', 'call', '/p2d/ask', 'p2d_msgs/srv/Ask', _]:
            pass
        case ['run', 'diagnostic_aggregator', 'aggregator_node', *_, file]:
            assert (ROOT / file).is_file()
        case ['security' | 'bag', *_] | ['run', 'rqt_plot' | 'rqt_robot_monitor', *_]:
            pass  # tools of others, with our topics in config/sros2 and docs/watching.md
        case _:
            pytest.fail(f'ros2 {" ".join(words)}: no check of this command; add one')


def check_requirements(words: list[str]) -> None:
    """Check that a file of `pip install -r` is there."""
    for option, file in itertools.pairwise(words):
        if option == '-r':
            assert (ROOT / 'requirements' / Path(file).name).is_file()


@pytest.mark.parametrize('words', commands(), ids=' '.join)
def test_the_commands_in_documents_exist(words, capsys):
    program, *rest = words
    match Path(program).name:
        case 'make':
            targets = re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
            assert [word for word in rest if '=' not in word and word not in targets] == []
        case 'ros2':
            check_ros2(rest, capsys)
        case name if name.endswith('.sh'):
            assert (ROOT / program).is_file()
            scripts = [word for word in rest if word.endswith('.py')]
            assert all((ROOT / script).is_file() for script in scripts)
        case 'docker':
            compose, option, file, verb, service, *command = rest
            assert (compose, option) == ('compose', '-f')
            assert verb in ('build', 'run')
            assert (ROOT / file).is_file()
            assert service in services()
            if command:
                check_ros2(command[1:], capsys)
        case 'pip':
            check_requirements(rest)
        case name:
            assert name in SHELL + OF_OTHERS, (
                f'{" ".join(words)}: no check of this command; add one'
            )


@pytest.mark.parametrize(
    'words',
    [
        ('make', 'coffee'),
        ('ros2', 'launch', 'p2d_node', 'drive.launch.py', 'modle:=x'),
        ('ros2', 'param', 'set', '/p2d', 'retention_ration', '1'),
        ('ros2', 'run', 'p2d_node', 'p2d', 'replay', '--bagg', 'x'),
        ('docker', 'compose', '-f', 'docker/compose.yaml', 'build', 'jetpack9'),
        ('pip', 'install', '-r', 'requirements/vehikle.txt'),
        ('unknown',),
    ],
)
def test_a_command_that_does_not_exist_is_found(words, capsys):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_the_commands_in_documents_exist(words, capsys)
