"""The documents are short, linked, and say what the code and the measured figures say."""

from __future__ import annotations

from pathlib import Path
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

from documented_commands import CODE_BLOCK, DOCUMENTS, ROOT
from p2d_node.cli.main import main
from p2d_node.config_parameters import CAMERA_NAMES, list_parameters
import pytest
import yaml

LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')
HEADING = re.compile(r'^#+ (.+)$', re.MULTILINE)
PATH = re.compile(r'`((?:src|tests|config|docs|engines|benchmarks|examples|tools)/[^`<>* ]*)`')
MAX_README_WORDS = 1200


def read_text(path: Path) -> str:
    return CODE_BLOCK.sub('', path.read_text(encoding='utf-8'))


def anchors_of(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    titles = HEADING.findall(read_text(path))
    return {re.sub(r'[^\w\- ]', '', title).strip().lower().replace(' ', '-') for title in titles}


def broken_links(path: Path) -> list[str]:
    broken = []
    for link in LINK.findall(read_text(path)):
        if re.match(r'[a-z]+:', link):
            continue
        name, _, anchor = link.partition('#')
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    return broken


def run_check(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / 'benchmarks' / 'document_all.py'), '--check']
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_the_readme_is_short():
    words = re.sub(r'<!--.*?-->', '', (ROOT / 'README.md').read_text(), flags=re.DOTALL).split()
    assert len(words) < MAX_README_WORDS


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(path):
    assert broken_links(path) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / 'there.md').write_text('# A heading, here\n')
    document = tmp_path / 'document.md'
    document.write_text('[a](there.md#a-heading-here) [b](missing.md) [c](there.md#missing)')
    assert broken_links(document) == ['missing.md', 'there.md#missing']


def test_the_index_lists_every_document():
    index = (ROOT / 'docs' / 'README.md').read_text()
    missing = [p.name for p in (ROOT / 'docs').glob('*.md') if f']({p.name})' not in index]
    assert missing == ['README.md']


def test_the_tables_are_those_of_the_code_and_the_measured_figures():
    done = run_check(ROOT)
    assert done.stdout == ''
    assert done.returncode == 0, done.stderr


CHANGES = {
    'README.md': ('734 of 734', '733 of 734'),
    'docs/measured.md': ('| 4,396 | 0 | 0 |', '| 4,396 | 0 | 1 |'),
    'docs/clips.md': ('| 90.4% |', '| 91.4% |'),
    'docs/token_selection.md': ('| 17.6 |', '| 16.6 |'),
    'docs/parameters.md': ('1 to 4096', '1 to 4095'),
    'docs/topics.md': ('`uint32[]`', '`uint8[]`'),
    'docs/verbs.md': ('`--seed SEED`', '`--sed SEED`'),
    'docs/architecture.md': ('`durable_files`', '`files`'),
    'docs/reliability.md': ('A camera dies', 'A camera sleeps'),
    'docs/security.md': ('emits noise', 'emits music'),
    'docs/performance.md': ('| `thor` | 273 |', '| `thor` | 274 |'),
}
"""Document to a text in one of its tables, and what another one would be."""


def test_every_document_whose_tables_differ_is_named(tmp_path):
    for name in ('benchmarks', 'docs', 'src', 'tests', 'ros2_ws/src/p2d_msgs'):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ('README.md', 'pyproject.toml'):
        shutil.copy(ROOT / name, tmp_path)
    for document, (before, after) in CHANGES.items():
        path = tmp_path / document
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))
    done = run_check(tmp_path)
    assert done.returncode == 1
    told = [line.partition(': tables differ')[0] for line in done.stdout.splitlines()]
    assert sorted(told) == sorted(CHANGES)


def test_every_parameter_is_documented():
    text = (ROOT / 'docs' / 'parameters.md').read_text()
    for parameter in [CAMERA_NAMES, *list_parameters(['<CAMERA>'])]:
        assert f'| `{parameter.name}` |' in text


def documented_commands() -> list[tuple[str, ...]]:
    """Every command `p2d VERB ...` in a block of code, as its words, without comments."""
    blocks = [block for path in DOCUMENTS for block in CODE_BLOCK.findall(path.read_text())]
    text = '\n'.join(blocks).replace('\\\n', ' ')
    lines = {line.partition('#')[0].strip() for line in text.splitlines()}
    return sorted(tuple(line.split()[1:]) for line in lines if line.startswith('p2d '))


@pytest.mark.parametrize('words', documented_commands(), ids=' '.join)
def test_the_commands_in_documents_have_these_options(words, capsys):
    verb = words[:2] if words[0] == 'bench' else words[:1]
    with pytest.raises(SystemExit, match='0'):
        main([*verb, '--help'])
    printed = capsys.readouterr().out
    options = [word for word in words if word.startswith('--')]
    assert [option for option in options if not re.search(rf'{option}\b', printed)] == []


def test_the_launch_arguments_and_presets_are_documented():
    text = (ROOT / 'docs' / 'vehicle.md').read_text()
    launch = (ROOT / 'launch' / 'drive.launch.py').read_text()
    arguments = re.findall(r"DeclareLaunchArgument\(\s*'(\w+)'", launch)
    assert re.findall(r'^\| `(\w+)` \|', text, re.MULTILINE) == arguments
    presets = [path.stem for path in (ROOT / 'config' / 'cameras').glob('*.yaml')]
    assert all(f'`{preset}`' in text for preset in presets)


def test_contributing_names_files_that_are_there():
    named = PATH.findall((ROOT / 'CONTRIBUTING.md').read_text())
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ('document', 'folder'),
    [('architecture.md', 'src/p2d_node'), ('language_model.md', 'src/p2d_node/language_model')],
)
def test_the_tables_of_files_name_files_that_are_there(document, folder):
    text = (ROOT / 'docs' / document).read_text()
    (table,) = re.findall(rf'^\| file of `{folder}/`.*?\n\n', text, re.MULTILINE | re.DOTALL)
    named = re.findall(r'^\| `([^`]+)`', table, re.MULTILINE)
    assert len(named) > 8
    assert [name for name in named if not (ROOT / folder / name).exists()] == []


def test_the_picture_of_a_sweep_is_well_formed():
    root = ElementTree.parse(ROOT / 'docs' / 'images' / 'sweep.svg').getroot()
    assert root.tag == '{http://www.w3.org/2000/svg}svg'
    texts = {element.text for element in root.iter('{http://www.w3.org/2000/svg}text')}
    assert {'begin', 'selector.select', 'resume', 'ask', 'generate'} <= texts


@pytest.mark.parametrize(
    'path', sorted((ROOT / '.github').rglob('*.yml')), ids=lambda path: path.name
)
def test_the_files_for_github_are_yaml_of_the_right_form(path):
    content = yaml.safe_load(path.read_text())
    if path.parent.name == 'workflows':
        assert {'name', 'jobs'} <= set(content)
    elif path.name == 'dependabot.yml':
        assert {'version', 'updates'} == set(content)
    elif path.name != 'config.yml':
        assert {'name', 'description', 'body'} <= set(content)
        labels = [item['attributes']['label'] for item in content['body'] if 'id' in item]
        assert len(labels) == len(set(labels)) >= 3
        kinds = {'markdown', 'input', 'textarea', 'dropdown'}
        assert {item['type'] for item in content['body']} <= kinds


def test_the_workflow_runs_make_test_on_every_distribution_with_wheels():
    workflow = yaml.safe_load((ROOT / '.github' / 'workflows' / 'ci.yml').read_text())
    job = workflow['jobs']['test']
    assert job['steps'][-1]['run'] == 'make test ROS_DISTRO=${{ matrix.ros_distro }}'
    pinned = {path.stem.removeprefix('ros-') for path in ROOT.glob('requirements/ros-*.txt')}
    assert set(job['strategy']['matrix']['ros_distro']) == pinned


def test_the_hooks_run_commands_that_are_there():
    settings = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())
    hooks = [hook for repository in settings['repos'] for hook in repository['hooks']]
    assert {hook['language'] for hook in hooks} == {'system'}
    for hook in hooks:
        runner, venv, _suffix, command, *arguments = hook['entry'].split()
        assert (runner, venv) == ('tools/run.sh', '.venv')
        assert shutil.which(command)
        scripts = [argument for argument in arguments if argument.endswith('.py')]
        assert all((ROOT / script).is_file() for script in scripts)
