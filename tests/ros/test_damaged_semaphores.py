"""What another user can leave in shared memory does not end the node."""

import ctypes
import os
from pathlib import Path

from p2d_node.errors import ConfigError
from p2d_node.ros.damaged_semaphores import remove_damaged_semaphores, SHARED_MEMORY
import pytest

NAME = 'sem.fastdds_port7000_mutex'
DAMAGED = [b'', b'\xa5' * 10, b'\xa5' * 32, b'\x01' * 8192, bytes(8) + b'\x80\x01\x00\x00']


@pytest.mark.attack(
    'another user leaves a damaged semaphore of Fast DDS in /dev/shm, with which the C library '
    'aborts each node that starts',
    'it is removed; where that is not allowed, the node names it and who left it',
)
@pytest.mark.parametrize('content', DAMAGED)
def test_a_damaged_semaphore_is_removed(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    remove_damaged_semaphores(tmp_path)
    assert not (tmp_path / NAME).exists()


def test_one_that_may_not_be_removed_is_named(tmp_path, monkeypatch):
    (tmp_path / NAME).write_bytes(DAMAGED[0])

    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(Path, 'unlink', refuse)
    with pytest.raises(
        ConfigError, match=f'{NAME}: got a damaged semaphore .* user {os.getuid()}'
    ):
        remove_damaged_semaphores(tmp_path)


@pytest.mark.parametrize('value', [0, 1, 5])
def test_a_semaphore_stays(tmp_path, value):
    library = ctypes.CDLL(None)
    library.sem_open.restype = ctypes.c_void_p
    name = f'/p2d-test-{os.getpid()}-{value}'
    assert library.sem_open(name.encode(), os.O_CREAT | os.O_EXCL, 0o600, value)
    content = (SHARED_MEMORY / f'sem.{name[1:]}').read_bytes()
    library.sem_unlink(name.encode())
    (tmp_path / NAME).write_bytes(content)
    remove_damaged_semaphores(tmp_path)
    assert (tmp_path / NAME).read_bytes() == content


def test_what_fast_dds_cannot_open_stays(tmp_path):
    (tmp_path / NAME).mkdir()
    os.mkfifo(tmp_path / f'{NAME}-pipe')
    (tmp_path / f'{NAME}-link').symlink_to('nowhere')
    (tmp_path / 'another').write_bytes(DAMAGED[1])
    remove_damaged_semaphores(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
