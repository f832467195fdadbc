"""The source distribution: it builds the same wheel as the repository, which runs without ROS."""

from pathlib import Path
import shutil
import subprocess
import sys
import zipfile

from p2d_node.ros.missing_package import ROS_PACKAGES
import pytest
from test_installation import FILES, FOLDERS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
BUILD = 'import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])'
WITHOUT_ROS = f"""
import sys
class NoRos:
    def find_spec(name, path=None, target=None):
        if name in {ROS_PACKAGES!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, NoRos)
from p2d_node.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a `wheel` or an `sdist` of `source` and return its file."""
    command = [sys.executable, '-c', BUILD.format(kind), str(out)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=60)
    (path,) = out.glob('*.whl' if kind == 'wheel' else '*.tar.gz')
    return path


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith('/RECORD')}


@pytest.fixture(scope='module')
def wheels(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel of the repository, and that of its source distribution."""
    folder = tmp_path_factory.mktemp('distributions')
    source = folder / 'source'
    source.mkdir()
    for name in (*FILES, 'MANIFEST.in'):
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        ignored = shutil.ignore_patterns('*.egg-info', '__pycache__')
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    (folder / 'direct').mkdir()
    direct = build('wheel', source, folder / 'direct')
    sdist = build('sdist', source, folder)
    shutil.unpack_archive(sdist, folder / 'unpacked', filter='data')
    (unpacked,) = (folder / 'unpacked').iterdir()
    return direct, build('wheel', unpacked, folder)


def test_the_source_distribution_builds_the_wheel_of_the_repository(wheels):
    direct, from_source = wheels
    assert contents(from_source) == contents(direct)
    assert any(name.endswith('models/p2d-mini/model.safetensors') for name in contents(direct))


@pytest.fixture(scope='module')
def installed(wheels, tmp_path_factory) -> Path:
    """A folder with the package as pip installs it from the source distribution."""
    target = tmp_path_factory.mktemp('target')
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index']
    subprocess.run([*command, '--target', str(target), str(wheels[1])], check=True, timeout=60)
    return target


def run_without_ros(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the installed `p2d` where no package of ROS can be imported."""
    return subprocess.run(
        [sys.executable, '-c', WITHOUT_ROS, *words],
        cwd=installed,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_without_ros_a_verb_that_needs_it_says_so(installed):
    done = run_without_ros(installed, 'watch')
    assert done.returncode == 2
    assert 'is not installed; ' in done.stderr
    assert done.stderr.count('\n') == 1


def test_without_ros_p2d_measures_the_model_that_ships(installed):
    words = ['bench', 'select', '--tokens', '16', '--hidden', '8', '--retention-ratio', '0.5']
    done = run_without_ros(installed, *words, '--json')
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('{')
