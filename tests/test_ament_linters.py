"""The linters of ROS 2, where they are installed: `colcon test` brings them on a distribution.

ament_copyright is not among them: it wants a notice with name and year in every file. The licence
is in LICENSE and, by its SPDX name, in every package.xml.
"""

from pathlib import Path
import shutil

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKED = [str(ROOT / name) for name in ('src', 'launch', 'setup.py')]


def test_flake8():
    flake8 = pytest.importorskip('ament_flake8.main')
    config = Path(__file__).with_name('ament_flake8.ini')
    num_wrong, errors = flake8.main_with_errors(argv=['--config', str(config), *CHECKED])
    assert num_wrong == 0, '\n'.join(errors)


def test_pep257():
    pep257 = pytest.importorskip('ament_pep257.main')
    options = ['--convention', 'google', '--add-ignore', 'D103', 'D105', 'D107']
    assert pep257.main(argv=[*options, '--', *CHECKED]) == 0


def test_xmllint():
    xmllint = pytest.importorskip('ament_xmllint.main')
    if shutil.which('xmllint') is None:
        pytest.skip('xmllint is not installed')
    # Not package.xml: its schema comes from the network. test_packages.py validates it.
    assert xmllint.main(argv=[str(ROOT / 'config')]) == 0
