"""The examples run, and print what their README shows."""

from pathlib import Path
import re
import runpy
import sys

from p2d_node.token_selection.factory import SELECTORS
import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / 'examples'
LAUNCH_TESTS = EXAMPLES.parent / 'tests' / 'ros' / 'test_launch.py'


@pytest.fixture(autouse=True)
def _examples_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    selectors, num_threads = dict(SELECTORS), torch.get_num_threads()
    yield
    SELECTORS.clear()
    SELECTORS.update(selectors)
    torch.set_num_threads(num_threads)
    sys.modules.pop('example_sweep', None)


def run_example(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'argv', [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name='__main__')


def test_answer_folder_answers_about_six_images(tmp_path, monkeypatch, capsys):
    from example_sweep import draw_images

    for camera, data in draw_images().items():
        (tmp_path / f'{camera}.jpg').write_bytes(data)
    question = 'What should the ego vehicle do next?'
    run_example('answer_folder.py', str(tmp_path), question, monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert printed == 'brake (114 of 1176 visual tokens)\n'
    assert printed in (EXAMPLES / 'README.md').read_text()


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        ((), 'required: folder, question'),
        (('missing', 'Why?'), 'CAM_FRONT: missing/CAM_FRONT.jpg cannot be read'),
    ],
)
def test_answer_folder_refuses_bad_arguments_in_one_line(arguments, reason, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        run_example('answer_folder.py', *arguments, monkeypatch=monkeypatch)
    assert caught.value.code == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


def run_program_of(document, tmp_path, monkeypatch, capsys) -> list[str]:
    """Run the program in a document on drawn images; return the lines that it prints."""
    from example_sweep import draw_images

    (tmp_path / 'FOLDER').mkdir()
    for camera, data in draw_images().items():
        (tmp_path / 'FOLDER' / f'{camera}.jpg').write_bytes(data)
    monkeypatch.chdir(tmp_path)
    text = (EXAMPLES.parent / document).read_text()
    (program,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    exec(compile(program, document, 'exec'), {})
    return capsys.readouterr().out.splitlines()


def test_the_program_in_the_readme_runs_as_written(tmp_path, monkeypatch, capsys):
    (line,) = run_program_of('README.md', tmp_path, monkeypatch, capsys)
    assert line.split()[0] == 'brake'


def test_the_program_about_clips_runs_as_written(tmp_path, monkeypatch, capsys):
    lines = run_program_of('docs/clips.md', tmp_path, monkeypatch, capsys)
    assert [line.split()[0] for line in lines] == ['1', '2', '3', '4']


def test_add_selector_answers_with_its_own_selector_and_with_tfps(monkeypatch, capsys):
    run_example('add_selector.py', monkeypatch=monkeypatch)
    own, tfps = capsys.readouterr().out.splitlines()
    assert own.startswith('largest_norm: ')
    assert own.endswith(' (114 visual tokens)')
    assert tfps == 'tfps: brake (114 visual tokens)'


def test_every_example_is_tested_and_listed():
    names = {path.name for path in EXAMPLES.glob('*.py')} - {'example_sweep.py'}
    tests = Path(__file__).read_text() + LAUNCH_TESTS.read_text()
    readme = (EXAMPLES / 'README.md').read_text()
    assert names
    assert all(f"'{name}'" in tests and name in readme for name in names)
