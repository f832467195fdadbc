"""The node does not run files of the folder that it is started in, which may be a data set."""

import os
import subprocess
import sys

from p2d_node.cli.node_process import START
import pytest


@pytest.mark.attack(
    'A data set holds files with the names of modules, such as PIL.py, and p2d demo runs in it',
    'the node is started without the working folder in the path of Python',
)
def test_files_of_the_working_folder_are_not_run(ros_domain, tmp_path):
    for name in ('PIL', 'yaml', 'rclpy', 'numpy'):
        (tmp_path / f'{name}.py').write_text("open('PWNED', 'w')")
    words = [sys.executable, '-c', START, str(os.getpid())]
    words += ['--ros-args', '-p', 'model:=nowhere']
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 2
    assert "model: got 'nowhere'" in done.stderr
    assert not (tmp_path / 'PWNED').exists()
