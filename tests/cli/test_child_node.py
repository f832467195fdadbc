"""A child of a verb ends with it, even if the verb is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from p2d_node.cli.child_node import end_with_parent
import pytest

CHILD = """
import sys, time
from p2d_node.cli.child_node import end_with_parent
end_with_parent(int(sys.argv[1]))
print('ready', flush=True)
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys, time
command = [sys.executable, '-c', {CHILD!r}, str(os.getpid())]
child = subprocess.Popen(command, start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def is_running(process_id: int) -> bool:
    try:
        with open(f'/proc/{process_id}/stat', encoding='utf-8') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def test_a_child_ends_when_its_parent_is_killed():
    with subprocess.Popen([sys.executable, '-c', PARENT], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == b'ready\n'  # the child has the same output
        assert is_running(child)
        parent.send_signal(signal.SIGKILL)
        end_s = time.monotonic() + 10.0
        while is_running(child) and time.monotonic() < end_s:
            time.sleep(0.05)
        assert not is_running(child)


def test_a_child_whose_parent_has_ended_already_does_not_start():
    code = f'from p2d_node.cli.child_node import end_with_parent; end_with_parent({os.getppid()})'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 1


def test_a_process_that_is_no_parent_is_noticed_at_once():
    with pytest.raises(SystemExit, match='1'):
        end_with_parent(os.getpid())
