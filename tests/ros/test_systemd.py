"""What the node tells systemd, and the unit that systemd starts it with."""

from collections.abc import Iterator
import configparser
from pathlib import Path
import shlex
import signal
import socket
import subprocess
import sys

from p2d_node.ros.drive import EXIT_BAD_INPUT
from p2d_node.ros.systemd import LIVES, notify_systemd, READY, STOPPING
import pytest

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / 'config' / 'systemd' / 'p2d-drive.service'
DRIVE = [sys.executable, '-m', 'p2d_node.ros.drive', '--ros-args']
PLACE = '/opt/p2d_node'


@pytest.fixture
def manager(tmp_path, monkeypatch) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    path = str(tmp_path / 'notify')
    monkeypatch.setenv('NOTIFY_SOCKET', path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(path)
        channel.settimeout(60.0)
        yield channel


def hear_until(state: str, manager: socket.socket) -> list[str]:
    """What the node tells before `state`."""
    heard: list[str] = []
    while len(heard) < 50:  # one a second
        heard.append(manager.recv(100).decode())
        if heard[-1] == state:
            return heard[:-1]
    pytest.fail(f'got {set(heard)}, expected {state}')


def test_a_node_tells_systemd_that_it_is_ready_lives_and_stops(
    ros_domain, manager, tiny_checkpoint
):
    process = subprocess.Popen([*DRIVE, '-p', f'model:={tiny_checkpoint}'])
    try:
        assert set(hear_until(READY, manager)) <= {LIVES}
        manager.settimeout(5.0)
        assert [manager.recv(100).decode() for _ in range(2)] == [LIVES, LIVES]
        process.send_signal(signal.SIGTERM)
        assert set(hear_until(STOPPING, manager)) <= {LIVES}
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


def test_a_node_that_cannot_start_is_never_ready(ros_domain, manager):
    code = subprocess.run([*DRIVE, '-p', 'model:=/nowhere'], check=False, timeout=60).returncode
    manager.setblocking(False)
    assert READY not in hear_until(STOPPING, manager)
    assert code == EXIT_BAD_INPUT


def test_a_manager_that_is_gone_or_full_costs_nothing(manager, monkeypatch):
    for _ in range(1000):  # more than the socket holds: nobody reads it
        notify_systemd(LIVES)
    monkeypatch.setenv('NOTIFY_SOCKET', '/nowhere/notify')
    notify_systemd(LIVES)
    monkeypatch.delenv('NOTIFY_SOCKET')
    notify_systemd(LIVES)


def test_a_manager_with_a_name_without_a_file_is_told(monkeypatch):
    monkeypatch.setenv('NOTIFY_SOCKET', '@p2d-test')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind('\0p2d-test')
        channel.settimeout(5.0)
        notify_systemd(LIVES)
        assert channel.recv(100) == b'WATCHDOG=1'


@pytest.fixture
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=['='])
    parser.optionxform = str
    parser.read(UNIT)
    return parser


def test_the_unit_names_files_of_the_repository(unit):
    lines = UNIT.read_text()
    named = {word for word in lines.split() if f'{PLACE}/config/' in word}
    paths = {word.split(PLACE)[-1].strip("/'") for word in named}
    assert {'config/fastdds.xml', 'config/cyclonedds.xml', 'config/cameras/nuscenes.yaml'} == paths
    assert all((ROOT / path).is_file() for path in paths)
    shell, option, script = shlex.split(unit['Service']['ExecStart'])
    assert (shell, option) == ('/bin/bash', '-c')
    assert f'exec {PLACE}/ros2_ws/install/p2d_node/lib/p2d_node/drive --ros-args' in script
    subprocess.run([shell, '-n', option, script], check=True)


def test_the_unit_watches_the_node_and_does_not_repeat_bad_input(unit):
    service = unit['Service']
    assert service['Type'] == 'notify'
    assert int(service['WatchdogSec']) >= 10
    assert service['Restart'] == 'on-failure'
    assert int(service['RestartPreventExitStatus']) == EXIT_BAD_INPUT
