"""The image of docker/: its recipe is clean, gets its arguments, and copies what is there."""

from pathlib import Path
import re
import shutil
import subprocess

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / 'docker' / 'Dockerfile'
ARGUMENT = re.compile(r'^ARG (\w+)(=?)', re.MULTILINE)
COPIED = re.compile(r'^COPY (\S+) ', re.MULTILINE)


def services() -> dict:
    return yaml.safe_load((ROOT / 'docker' / 'compose.yaml').read_text())['services']


def test_hadolint_has_no_complaint():
    hadolint = shutil.which('hadolint')
    if hadolint is None:
        pytest.skip('hadolint is installed by make setup on x86-64 only')
    done = subprocess.run(
        [hadolint, DOCKERFILE], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, '')


def test_every_service_gives_the_arguments_that_have_no_default():
    needed = {name for name, default in ARGUMENT.findall(DOCKERFILE.read_text()) if not default}
    assert {'BASE', 'ROS_DISTRO'} == needed
    assert {'jetpack6', 'jetpack7', 'x86'} == set(services())
    for service in services().values():
        assert set(service['build']['args']) == needed
        assert service['build']['args']['BASE'].startswith('${REGISTRY:?')


def test_the_readme_has_the_base_image_and_distribution_of_every_service():
    text = (ROOT / 'docker' / 'README.md').read_text()
    for name, service in services().items():
        arguments = service['build']['args']
        image, distribution = arguments['BASE'].rpartition('/')[2], arguments['ROS_DISTRO']
        assert re.search(
            rf'^\| `{name}` \|.*\| {distribution.capitalize()} \| `{image}` \|$',
            text,
            re.MULTILINE,
        )


def test_what_the_image_copies_is_there_and_not_ignored():
    copied = COPIED.findall(DOCKERFILE.read_text())
    assert '.' in copied
    assert all((ROOT / name).exists() for name in copied)
    ignored = {line.strip('/') for line in (ROOT / '.dockerignore').read_text().splitlines()}
    assert not ignored & {'src', 'launch', 'config', 'models', 'requirements', 'resource'}
    assert (ROOT / 'ros2_ws' / 'src' / 'p2d_node').resolve() == ROOT
