"""The three ROS packages: colcon finds, builds and tests them, in a workspace and as a release."""

import datetime
import os
from pathlib import Path
import shutil
import subprocess
import sys

from catkin_pkg.changelog import get_changelog_from_path
from catkin_pkg.package import parse_package
from colcon_core.task.python.test import has_test_dependency
from colcon_python_setup_py.package_identification.python_setup_py import get_setup_information
from p2d_node.ros.missing_package import BUILD_COMMAND
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXPORT = 'tools/export_packages.sh'
FOLDERS = {
    'p2d_node': ROOT,
    'p2d_msgs': ROOT / 'ros2_ws' / 'src' / 'p2d_msgs',
    'p2d_sim': ROOT / 'ros2_ws' / 'src' / 'p2d_sim',
}


def run(*command: str | Path, cwd: Path, timeout_s: float = 60.0) -> subprocess.CompletedProcess:
    prefix = os.environ.get('AMENT_PREFIX_PATH', '').rpartition(':')[2] or sys.prefix
    environment = {
        **os.environ,
        'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        # Without the ros2_ws that was built here.
        'AMENT_PREFIX_PATH': prefix,
        'CMAKE_PREFIX_PATH': prefix,
    }
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )


def packages_in(workspace: Path, *options: str) -> dict[str, str]:
    """Return what `colcon list` finds: package name to folder."""
    done = run('colcon', '--log-base', os.devnull, 'list', *options, cwd=workspace)
    assert done.returncode == 0, done.stderr
    lines = [line.split('\t') for line in done.stdout.splitlines()]
    return {name: folder for name, folder, _ in lines}


@pytest.fixture
def workspace(tmp_path) -> Path:
    """A workspace with the repository in src/p2d_node."""
    (tmp_path / 'src').mkdir()
    (tmp_path / 'src' / 'p2d_node').symlink_to(ROOT)
    return tmp_path


def test_the_documented_command_finds_the_three_packages_in_a_workspace(workspace):
    assert set(packages_in(workspace)) == {'p2d_node'}
    words = BUILD_COMMAND.partition(' && ')[0].split()
    assert words[:2] == ['colcon', 'build']
    assert set(packages_in(workspace, *words[2:])) == set(FOLDERS)


@pytest.mark.parametrize('document', ['README.md', 'docs/vehicle.md'])
def test_the_documents_name_the_base_paths(document):
    build = BUILD_COMMAND.partition(' && ')[0]
    base_paths = build.removeprefix('colcon build ')
    text = (ROOT / document).read_text()
    assert base_paths in text
    assert f'rosdep install {base_paths.replace("--base-paths", "--from-paths")}' in text


def test_the_workspace_of_the_repository_has_the_three_packages():
    assert set(packages_in(ROOT / 'ros2_ws')) == set(FOLDERS)


def test_the_packages_are_valid_and_state_the_same():
    stated = []
    for name, folder in FOLDERS.items():
        warnings: list[str] = []
        package = parse_package(str(folder), warnings=warnings)
        package.validate(warnings=warnings)
        assert warnings == []
        assert package.name == name
        urls = [url.url for url in package.urls]
        stated.append((package.version, package.licenses, str(package.maintainers[0]), urls))
    assert stated == [stated[0]] * 3


def test_colcon_runs_pytest_for_the_package():
    assert has_test_dependency(get_setup_information(ROOT / 'setup.py'), 'pytest')


@pytest.fixture
def small_project(tmp_path) -> Path:
    """A repository with what the export needs, and a file that git ignores."""
    project = tmp_path / 'project'
    for name in ('package.xml', 'LICENSE', EXPORT):
        (project / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT / name, project / name)
    for name in ('p2d_msgs', 'p2d_sim'):
        (project / 'ros2_ws' / 'src' / name).mkdir(parents=True)
        shutil.copy(FOLDERS[name] / 'package.xml', project / 'ros2_ws' / 'src' / name)
    (project / 'ros2_ws' / 'src' / 'p2d_node').symlink_to('../..')
    (project / 'CHANGELOG.md').write_text(
        '# Changelog\n\n## Unreleased\n\n- x\n\n## 0.2.0 (2026-02-03)\n\n- y\n\n## 0.1.0\n\n- z\n'
    )
    (project / '.gitignore').write_text('secret\n')
    (project / 'secret').touch()
    (project / 'a file with spaces').touch()
    run('git', 'init', '--quiet', cwd=project)
    return project


def test_an_export_is_three_packages_side_by_side(small_project, tmp_path):
    target = tmp_path / 'release'
    assert run(EXPORT, target, cwd=small_project).returncode == 0
    assert packages_in(target) == {name: name for name in FOLDERS}
    exported = {path.name for path in (target / 'p2d_node').iterdir()}
    assert 'a file with spaces' in exported
    assert not {'secret', 'ros2_ws', '.git'} & exported
    for name in FOLDERS:
        assert (target / name / 'LICENSE').is_file()


def test_the_changelog_of_an_export_has_the_dated_releases(small_project, tmp_path):
    target = tmp_path / 'release'
    run(EXPORT, target, cwd=small_project)
    for name in FOLDERS:
        changelog = get_changelog_from_path(str(target / name))
        releases = list(changelog.foreach_version())
        assert [(version, date) for version, date, _ in releases] == [
            ('0.2.0', datetime.datetime(2026, 2, 3))
        ]
        assert 'CHANGELOG.md' in str(changelog)
        assert '\nForthcoming\n' in (target / name / 'CHANGELOG.rst').read_text()


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        ([], 'got 0 arguments, needed: tools/export_packages.sh DIR'),
        (['full'], 'which is not empty'),
        (['full/file/x'], 'cannot be created'),
    ],
)
def test_a_folder_that_cannot_take_an_export_is_refused(small_project, arguments, reason):
    (small_project / 'full').mkdir()
    (small_project / 'full' / 'file').touch()
    done = run(EXPORT, *arguments, cwd=small_project)
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[-1]


def test_a_python_that_is_not_there_is_named():
    done = run('tools/test_without_ros.sh', 'python9.9', cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == 'p2d_node: got python9.9, which does not run; install it\n'


@pytest.mark.slow
@pytest.mark.ros
@pytest.mark.timeout(500)
def test_an_export_builds_and_its_node_finds_its_messages(tmp_path):
    source = tmp_path / 'src'
    done = run(ROOT / EXPORT, source, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(
        *('colcon', 'build', '--cmake-args', f'-DPython3_EXECUTABLE={sys.executable}'),
        cwd=tmp_path,
        timeout_s=400.0,
    )
    assert done.returncode == 0, done.stderr
    command = (
        '. install/setup.sh && install/p2d_node/lib/p2d_node/drive --ros-args -p model:=nowhere'
    )
    done = run('sh', '-c', command, cwd=tmp_path)
    assert done.returncode == 2
    assert "got 'nowhere'" in done.stderr
