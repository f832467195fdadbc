"""Checks that nobody but this user and root can change a file or swap a folder above it."""

from __future__ import annotations

import grp
import os
from pathlib import Path
import pwd
import shlex
import stat

from p2d_node.errors import EngineMismatchError


def check_folders(folder: Path) -> None:
    """Check `folder`, which has no links in its path, and every folder above it.

    Raises:
        EngineMismatchError: One of them is no folder, belongs to another user, or can be written
            by others.
    """
    for path in (folder, *folder.parents):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise EngineMismatchError(f'{path} is a link or a special file, allowed: a folder')
        # In a sticky folder, such as /tmp, only the owner of an entry can rename it.
        is_sticky = path != folder and bool(status.st_mode & stat.S_ISVTX)
        check_owner(path, status, others_may_write=is_sticky)


def check_owner(path: Path, status: os.stat_result, *, others_may_write: bool = False) -> None:
    """Check the owner and the mode of a file or folder.

    Args:
        path: For messages.
        status: Of the file, or of its open descriptor.
        others_may_write: Whether the mode does not count.

    Raises:
        EngineMismatchError: It belongs to another user, or can be written by others.
    """
    if status.st_uid not in (0, os.geteuid()):
        raise EngineMismatchError(
            f'{path} belongs to user {status.st_uid}, allowed: root or the user that runs this '
            f'({os.geteuid()})'
        )
    others = stat.S_IWOTH if _is_private(status.st_gid) else stat.S_IWOTH | stat.S_IWGRP
    if status.st_mode & others and not others_may_write:
        raise EngineMismatchError(
            f'{path} can be written by other users (mode {status.st_mode & 0o777:o}); check who '
            f'changed it, then chmod go-w {shlex.quote(str(path))}'
        )


def _is_private(group: int) -> bool:
    """Return whether a group is this user's own: it has the user's name and no other member."""
    if group != os.getegid():
        return False
    try:
        entry, user = grp.getgrgid(group), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return entry.gr_name == user.pw_name and set(entry.gr_mem) <= {user.pw_name}
