"""Removes damaged semaphores of Fast DDS: its next process would be ended by them.

They lie in a folder that every user of the machine can write to. The C library aborts a process
that uses one, without a word of what was wrong. As a program, root runs it before the node starts
(`config/systemd`): the node may not remove those of other users.
"""

from __future__ import annotations

import os
from pathlib import Path
import stat

from p2d_node.errors import ConfigError

SHARED_MEMORY = Path('/dev/shm')
SEMAPHORES = 'sem.fast*'

KIND = slice(8, 12)
KINDS = (b'\x00\x00\x00\x00', b'\x80\x00\x00\x00')
"""Bytes of a `sem_t` of glibc that say who shares it. With others the kernel refuses to wait for
it."""


def remove_damaged_semaphores(folder: Path = SHARED_MEMORY) -> None:
    """Remove semaphores that would end this process, before Fast DDS starts.

    Args:
        folder: Where they are.

    Raises:
        ConfigError: One belongs to another user.
    """
    for path in sorted(folder.glob(SEMAPHORES)):
        if not _is_damaged(path):
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as err:
            raise ConfigError(
                f'{path}: got a damaged semaphore of Fast DDS, which would end this program, and '
                f'which user {path.stat().st_uid} has left; have root remove it'
            ) from err


def _is_damaged(path: Path) -> bool:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with os.fdopen(os.open(path, flags), 'rb') as file:
            content = file.read(KIND.stop)
    except OSError:  # Fast DDS cannot open it either, and goes on without it
        return False
    return not content or content[KIND].ljust(4, b'\x00') not in KINDS


if __name__ == '__main__':
    remove_damaged_semaphores()
