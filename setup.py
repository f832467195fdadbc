"""Build of the package p2d_node, for colcon (ament_python) and for pip; sources lie under src/.

`pyproject.toml` leaves some fields of `[project]` to this file. Setuptools 59, the version of
ROS 2 Humble, does not read `[project]` and takes everything from here.
"""

from pathlib import Path
import re

from setuptools import find_packages, setup

PACKAGE = 'p2d_node'


def read_version() -> str:
    """Return `__version__` of the package, which cannot be imported without its dependencies."""
    text = Path('src', PACKAGE, '__init__.py').read_text(encoding='utf-8')
    return re.findall(r"^__version__ = '(.+)'$", text, re.MULTILINE)[0]


def share_files(*folders: str) -> list[tuple[str, list[str]]]:
    """List the files of `folders` as data_files entries below the package's share folder."""
    entries: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted(Path(folder).rglob('*')):
            if path.is_file() and '__pycache__' not in path.parts:
                entries.setdefault(f'share/{PACKAGE}/{path.parent}', []).append(str(path))
    return list(entries.items())


def read_requirements(name: str) -> list[str]:
    """Return the requirements of requirements/<name>.txt, without comments."""
    # colcon runs a link to this file, in a folder that has not the others.
    folder = Path(__file__).resolve().parent / 'requirements'
    lines = (folder / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    texts = [line.partition('#')[0].strip() for line in lines]
    return [text for text in texts if text]


OPTIONAL = ('engines', 'evaluation', 'tuning', 'watch', 'dev')
EXTRAS = {name: read_requirements(name) for name in OPTIONAL}
# `colcon test` runs pytest only for a package with an extra of this name that has pytest.
EXTRAS['test'] = ['pytest', 'pytest-timeout', 'hypothesis']

setup(
    name=PACKAGE,
    version=read_version(),
    package_dir={'': 'src'},
    packages=find_packages('src'),
    package_data={PACKAGE: ['py.typed', 'reports/*.jinja']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        *share_files('launch', 'config', 'models'),
    ],
    python_requires='>=3.10',
    zip_safe=True,
    maintainer='p2d_node maintainers',
    maintainer_email='maintainers@users.noreply.p2d-node.example',
    description='Prune2Drive on the vehicle: driving answers from six cameras with few tokens.',
    license='Apache-2.0',
    extras_require=EXTRAS,
    entry_points={
        'console_scripts': [
            'drive = p2d_node.ros.drive:main',
            'p2d = p2d_node.cli.main:main',
        ],
    },
)
