"""Build of the ROS 2 package p2d_node (ament_python, sources under src/)."""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = 'p2d_node'


def share_files(*folders: str) -> list[tuple[str, list[str]]]:
    """List the files of `folders` as data_files entries below the package's share folder."""
    entries: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted(Path(folder).rglob('*')):
            if path.is_file() and '__pycache__' not in path.parts:
                entries.setdefault(f'share/{PACKAGE}/{path.parent}', []).append(str(path))
    return list(entries.items())


setup(
    name=PACKAGE,
    version='0.1.0',
    package_dir={'': 'src'},
    packages=find_packages('src'),
    package_data={PACKAGE: ['py.typed']},
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
    entry_points={
        'console_scripts': [
            'drive = p2d_node.ros.drive:main',
            'p2d = p2d_node.cli.main:main',
        ],
    },
)
