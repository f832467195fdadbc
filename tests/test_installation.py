"""A wheel of the package: what pip installs is complete, and its metadata are true."""

import email
import importlib.metadata
import os
from pathlib import Path
import shutil
import subprocess
import sys
from xml.etree import ElementTree
import zipfile

import p2d_node
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = ('setup.py', 'setup.cfg', 'pyproject.toml', 'package.xml', 'README.md', 'LICENSE')
FOLDERS = ('src', 'requirements', 'resource', 'launch', 'config', 'models')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('build')
    source = folder / 'source'
    source.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns('*.egg-info', '__pycache__')
        )
    command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-index']
    command += ['--no-build-isolation', '--wheel-dir', str(folder), str(source)]
    subprocess.run(command, check=True, timeout=100)
    (path,) = folder.glob('*.whl')
    return path


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp('target')
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index']
    subprocess.run([*command, '--target', str(target), str(wheel)], check=True, timeout=100)
    return target


def run_installed(target: Path, *command: str, cwd: Path) -> str:
    environment = {**os.environ, 'PYTHONPATH': str(target)}
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_states_version_dependencies_and_extras(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith('.dist-info/METADATA')]
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata['Version'] == p2d_node.__version__
    requirements = map(Requirement, metadata.get_all('Requires-Dist'))
    needed = {r.name: r.specifier for r in requirements if r.marker is None}
    assert {'torch', 'transformers', 'numpy'} < set(needed)
    assert needed['torch'] == SpecifierSet('>=2.4,<3')
    assert {'engines', 'evaluation', 'tuning', 'watch', 'dev', 'test'} == set(
        metadata.get_all('Provides-Extra')
    )
    assert metadata['Requires-Python'] == '>=3.10'


def test_package_xml_has_the_version_of_the_package():
    assert ElementTree.parse(ROOT / 'package.xml').findtext('version') == p2d_node.__version__


def test_setup_py_stands_alone_for_a_setuptools_that_reads_no_project_table(tmp_path):
    for name in ('setup.py', 'setup.cfg', 'package.xml'):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
    shutil.copytree(ROOT / 'src', tmp_path / 'src', ignore=shutil.ignore_patterns('*.egg-info'))
    command = [sys.executable, 'setup.py', '-q', 'egg_info']
    subprocess.run(command, cwd=tmp_path, check=True, timeout=100)
    (info,) = (tmp_path / 'src').glob('*.egg-info')
    metadata = email.message_from_bytes((info / 'PKG-INFO').read_bytes())
    assert metadata['Version'] == p2d_node.__version__
    assert metadata['License'] == 'Apache-2.0'
    assert 'p2d = p2d_node.cli.main:main' in (info / 'entry_points.txt').read_text()


@pytest.mark.slow
def test_an_installed_package_imports_and_has_the_command(installed, tmp_path):
    where = run_installed(
        installed, '-c', 'import p2d_node; print(p2d_node.__file__)', cwd=tmp_path
    )
    assert Path(where.strip()).is_relative_to(installed)
    printed = run_installed(installed, str(installed / 'bin' / 'p2d'), '--help', cwd=tmp_path)
    assert 'usage: p2d' in printed


@pytest.mark.slow
def test_an_installed_package_finds_the_model_and_its_ratios(installed, tmp_path):
    code = (
        'from p2d_node.checkpoints.model_folder import shipped_model_folder\n'
        'from p2d_node.retention_presets import find_preset\n'
        "print(shipped_model_folder()); print(find_preset('p2d-mini'))"
    )
    model, preset = map(Path, run_installed(installed, '-c', code, cwd=tmp_path).split())
    assert model == installed / 'share' / 'p2d_node' / 'models' / 'p2d-mini'
    assert (model / 'model.safetensors').stat().st_size > 1_000_000
    assert preset.is_relative_to(installed)
    assert preset.is_file()


def test_the_dependencies_hold_for_the_versions_that_tests_run_with():
    for name in ('vehicle.txt', 'without_ros.txt'):
        for line in (ROOT / 'requirements' / name).read_text().splitlines():
            text = line.partition('#')[0].strip()
            if text:
                requirement = Requirement(text)
                version = importlib.metadata.version(requirement.name)
                assert requirement.specifier.contains(version), f'{text}: got {version}'
