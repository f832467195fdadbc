"""Other libraries find nothing in folders that others can write, and no settings in data."""

import getpass
import os
from pathlib import Path
import subprocess
import sys

import pytest

CACHE = """
import p2d_node.cli.main
from torch._inductor.runtime.cache_dir_utils import cache_dir
print(cache_dir())
"""

PROCESSES = """
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from p2d_node.engine_build.export import export_onnx
from p2d_node.evaluation.answer_workers import _connect
from p2d_node.tuning.local_workers import extra_workers

if __name__ == '__main__':
    with suppress(AttributeError):
        export_onnx(SimpleNamespace(checkpoint=None), Path('.'))
    with extra_workers(None, 1):
        pass
    with _connect(SimpleNamespace(scheduler=None, workers=1), 1) as client:
        print(client.submit(sum, [1, 2]).result())
"""

FIGURE = """
import os
from pathlib import Path
from p2d_node.figures import new_figure, write_figure

here = os.getcwd()
figure = new_figure(2, 1)
figure.subplots().set_title('title')
write_figure(Path('figure.png'), figure, 50)
import matplotlib
assert not matplotlib.rcParams['text.usetex']
assert os.getcwd() == here
"""


def run(code, *, cwd, command=(), **environment):
    kept = {name: value for name, value in os.environ.items() if name != 'TORCHINDUCTOR_CACHE_DIR'}
    result = subprocess.run(
        [sys.executable, *(command or ('-c', code))],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.attack(
    'another user makes the folder of torch in /tmp first, as a file',
    'torch has a folder of this user: the node and p2d start',
)
@pytest.mark.parametrize('has_home', [True, False])
def test_the_folder_of_torch_in_tmp_is_not_used(tmp_path, has_home):
    temporary, home = tmp_path / 'tmp', tmp_path / 'home'
    temporary.mkdir()
    planted = temporary / f'torchinductor_{getpass.getuser()}'
    planted.touch()
    if not has_home:
        home.touch()  # nothing can be made in it
    used = Path(run(CACHE, cwd=tmp_path, TMPDIR=str(temporary), HOME=str(home), XDG_CACHE_HOME=''))
    assert used.parents[2 if has_home else 0] == (home if has_home else temporary)
    assert used.exists() == has_home  # one in /tmp is removed at the end
    assert list(temporary.iterdir()) == [planted]


@pytest.mark.attack(
    'a data set has a file matplotlibrc, which matplotlib reads in the folder where p2d runs',
    'matplotlib reads its own settings and those of the user only',
)
def test_settings_of_matplotlib_in_data_are_not_read(tmp_path):
    (tmp_path / 'matplotlibrc').write_text('text.usetex: True\n')
    run(FIGURE, cwd=tmp_path)
    assert (tmp_path / 'figure.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.skipif(sys.version_info < (3, 11), reason='Python 3.10 has no PYTHONSAFEPATH')
@pytest.mark.attack(
    'a data set has a file multiprocessing.py, and p2d runs in its folder with several processes',
    'processes that p2d starts import nothing from the working folder',
)
def test_processes_import_nothing_from_the_working_folder(tmp_path):
    data, program = tmp_path / 'data', tmp_path / 'program.py'
    data.mkdir()
    (data / 'multiprocessing.py').write_text('open("ran", "w")\n')
    program.write_text(PROCESSES)
    assert run(None, cwd=data, command=[program]) == '3'
    assert not (data / 'ran').exists()


@pytest.mark.attack(
    'a folder that p2d is run in has a shared library with the name of one of the system',
    'tools/run.sh gives the loader no empty name in LD_LIBRARY_PATH, which is that folder',
)
@pytest.mark.parametrize('before', [{}, {'LD_LIBRARY_PATH': ''}])
def test_no_library_is_loaded_from_the_working_folder(tmp_path, before):
    root, venv = Path(__file__).resolve().parents[1], Path(sys.prefix)
    suffix = venv.name.removeprefix('.venv')
    install = root / f'ros2_ws/install{suffix}'
    if venv.parent != root or not (install / 'setup.bash').exists():
        pytest.skip('the environment of make setup is not there')
    show = ['bash', '-c', 'echo "$LD_LIBRARY_PATH"']
    result = subprocess.run(
        [root / 'tools/run.sh', venv.name, suffix, *show],
        cwd=tmp_path,
        env={'PATH': os.environ['PATH'], 'HOME': str(tmp_path), **before},
        capture_output=True,
        text=True,
        check=True,
    )
    folders = result.stdout.strip().split(':')
    assert str(install / 'p2d_msgs/lib') in folders
    assert all(map(os.path.isabs, folders))
