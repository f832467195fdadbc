"""Build of the ROS 2 package p2d_sim (ament_python)."""

from setuptools import find_packages, setup

PACKAGE = 'p2d_sim'

setup(
    name=PACKAGE,
    version='0.1.0',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
    ],
    python_requires='>=3.10',
    zip_safe=True,
    maintainer='p2d_node maintainers',
    maintainer_email='maintainers@users.noreply.p2d-node.example',
    description='A synthetic six-camera world, and the training of p2d-mini.',
    license='Apache-2.0',
    entry_points={
        'console_scripts': [
            'cameras = p2d_sim.cli.cameras:main',
            'train = p2d_sim.cli.train:main',
            'evaluate = p2d_sim.cli.evaluate:main',
            'world = p2d_sim.cli.world:main',
        ],
    },
)
