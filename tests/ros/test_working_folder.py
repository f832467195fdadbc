"""The node uses no files of the folder that it is started in, which may be a data set."""

import os
import subprocess
import sys

from p2d_node.cli.node_process import START
import pytest

PROFILES = """
<dds xmlns="http://www.eprosima.com"><log><consumer><class>FileConsumer</class>
<property><name>filename</name><value>victim</value></property>
<property><name>append</name><value>FALSE</value></property></consumer></log></dds>
"""


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


@pytest.mark.attack(
    'A data set has a file DEFAULT_FASTDDS_PROFILES.xml, whose log empties a file of the victim',
    'Fast DDS reads no profiles from the working folder',
)
def test_profiles_of_the_working_folder_are_not_read(ros_domain, tmp_path):
    (tmp_path / 'DEFAULT_FASTDDS_PROFILES.xml').write_text(PROFILES)
    (tmp_path / 'victim').write_text('kept')
    code = 'from p2d_node.cli.main import main; main(["watch", "--duration", "0.1"])'
    kept = {name: value for name, value in os.environ.items() if name != 'SKIP_DEFAULT_XML_FILE'}
    words = [sys.executable, '-c', code]
    done = subprocess.run(
        words, cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=100, check=False
    )
    assert 'p2d watch: error' not in done.stderr
    assert (tmp_path / 'victim').read_text() == 'kept'
