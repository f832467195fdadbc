"""What is installed: packages with the hashes of the lock, and the actions of the workflow."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / 'requirements'
DISTROS = sorted(path.stem.removeprefix('ros-') for path in REQUIREMENTS.glob('ros-*.txt'))
SHARED = ('base', 'engines', 'evaluation', 'tuning', 'dev', 'docs')
SHA256 = re.compile(r'sha256:[0-9a-f]{64}')


def requirements_of(name: str) -> list[Requirement]:
    """Read a file of requirements without hashes."""
    lines = (REQUIREMENTS / name).read_text().splitlines()
    texts = [line.partition('#')[0].strip() for line in lines]
    return [Requirement(text) for text in texts if text]


def locked(distro: str) -> list[tuple[Requirement, list[str]]]:
    """Read the packages of a lock, each with its hashes."""
    text = (REQUIREMENTS / f'lock-{distro}.txt').read_text().replace('\\\n', ' ')
    lines = [line.split(' # ')[0].strip() for line in text.splitlines()]
    split = [line.split('--hash=') for line in lines if line and not line.startswith('#')]
    return [(Requirement(name), [text.strip() for text in hashes]) for name, *hashes in split]


@pytest.mark.parametrize('distro', DISTROS)
def test_the_lock_has_the_versions_of_the_requirements(distro):
    versions = {canonicalize_name(r.name): r.specifier for r, _ in locked(distro)}
    for name in (*SHARED, f'ros-{distro}'):
        for requirement in requirements_of(f'{name}.txt'):
            if requirement.name != 'torch':
                version = versions.get(canonicalize_name(requirement.name))
                assert version == requirement.specifier, f'{requirement}: make lock'


@pytest.mark.parametrize('distro', DISTROS)
def test_every_package_of_the_lock_has_one_version_and_hashes(distro):
    packages = locked(distro)
    assert len(packages) > 100
    for requirement, hashes in packages:
        assert re.fullmatch(r'==[^*,]+', str(requirement.specifier)), str(requirement)
        assert hashes, str(requirement)
        assert all(SHA256.fullmatch(text) for text in hashes), str(requirement)


@pytest.mark.parametrize('distro', DISTROS)
def test_torch_and_the_libraries_of_its_cuda_build_are_outside_the_lock(distro):
    names = [requirement.name for requirement, _ in locked(distro)]
    assert [name for name in names if name.startswith(('nvidia-', 'cuda-'))] == []
    assert 'torch' not in names


@pytest.mark.parametrize('name', ['vehicle.txt', 'without_ros.txt'])
def test_a_vehicle_gets_no_major_version_that_was_not_tried(name):
    for requirement in requirements_of(name):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {'>=', '<'}, f'{requirement}: needed: lower and upper bound'


@pytest.fixture
def small_project(tmp_path) -> Path:
    """The set-up script, the lock of one package, and that package's wheel."""
    project = tmp_path / 'project'
    shutil.copytree(ROOT / 'tools', project / 'tools')
    python = project / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (project / 'requirements').mkdir()
    (project / 'requirements' / 'base.txt').write_text('torch==2.13.0\n')
    wheel = project / 'harmless-1.0-py3-none-any.whl'
    write_wheel(wheel, 'print("harmless")')
    write_lock(project, wheel)
    return project


def write_lock(project: Path, package: Path) -> None:
    """Write the lock of one package, NAME-1.0 followed by anything."""
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    line = f'{package.name.partition("-")[0]}==1.0 --hash=sha256:{digest}\n'
    (project / 'requirements' / 'lock-kilted.txt').write_text(line)


def write_wheel(path: Path, code: str) -> None:
    """Write the wheel of a package that is one module."""
    info = 'harmless-1.0.dist-info'
    with zipfile.ZipFile(path, 'w') as wheel:
        wheel.writestr('harmless.py', code)
        wheel.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\nName: harmless\nVersion: 1.0\n')
        wheel.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nTag: py3-none-any\n')
        wheel.writestr(f'{info}/RECORD', '')


def set_up(project: Path) -> tuple[str, Path]:
    """Run the set-up with this one wheel; return its messages and the installed module."""
    target = project / 'installed'
    environment = {
        **os.environ,
        'PIP_NO_INDEX': '1',
        'PIP_FIND_LINKS': str(project),
        'PIP_TARGET': str(target),
        'PYTHON': sys.executable,
    }
    done = subprocess.run(
        ['tools/setup.sh', 'kilted', '.venv', ''],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr, target / 'harmless.py'


@pytest.mark.attack(
    'a package on the index or a mirror is replaced by another file of the same version',
    'the set-up ends before the file is unpacked: its hash is not in the lock',
)
def test_the_set_up_refuses_a_replaced_package(small_project):
    write_wheel(small_project / 'harmless-1.0-py3-none-any.whl', 'print("not harmless")')
    message, installed = set_up(small_project)
    assert 'DO NOT MATCH THE HASHES' in message
    assert 'the packages of requirements/lock-kilted.txt could not be installed' in message
    assert not installed.exists()


def test_the_set_up_refuses_a_lock_with_a_package_without_a_hash(small_project):
    (small_project / 'requirements' / 'lock-kilted.txt').write_text('harmless==1.0\n')
    message, installed = set_up(small_project)
    assert 'hash' in message.lower()
    assert not installed.exists()


@pytest.mark.attack(
    'a package that comes as source asks for another package to build itself',
    'it is not downloaded: only packages of the lock are there to build with',
)
def test_the_set_up_builds_with_packages_of_the_lock_only(small_project):
    executed = small_project / 'executed'
    code = f'from pathlib import Path\nPath({str(executed)!r}).touch()'
    write_wheel(small_project / 'harmless-1.0-py3-none-any.whl', code)
    source = small_project / 'source-1.0.tar.gz'
    with tarfile.open(source, 'w:gz') as archive:
        for name, text in {
            'pyproject.toml': '[build-system]\nrequires=["harmless"]\nbuild-backend="harmless"',
            'PKG-INFO': 'Metadata-Version: 2.1\nName: source\nVersion: 1.0\n',
        }.items():
            member = tarfile.TarInfo(f'source-1.0/{name}')
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    write_lock(small_project, source)
    message, _ = set_up(small_project)
    assert not executed.exists()
    assert "No module named 'harmless'" in message


@pytest.mark.attack(
    'the tag of an action that CI uses is moved to other code',
    'CI still runs the commit that is written in the workflow, and may only read the repository',
)
def test_workflows_name_actions_by_commit_and_may_only_read():
    for path in (ROOT / '.github' / 'workflows').glob('*.yml'):
        workflow = yaml.safe_load(path.read_text())
        assert workflow['permissions'] == {'contents': 'read'}
        for job in workflow['jobs'].values():
            assert 'permissions' not in job
            for step in job['steps']:
                assert re.fullmatch(r'[\w./-]+@[0-9a-f]{40}', step.get('uses', f'a@{"0" * 40}'))
