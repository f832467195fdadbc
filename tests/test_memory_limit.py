"""The limit of the memory of `p2d`, set for real on this process or on one of its own."""

from functools import partial
import resource
import subprocess
import sys

import numpy as np
from p2d_node.cli.main import EXIT_BAD_INPUT, EXIT_NO_MEMORY, main
from p2d_node.cli.verb import Verb
from p2d_node.compressed_images import decode_compressed
from p2d_node.errors import ImageDecodeError
from p2d_node.memory_limit import available_bytes, is_out_of_memory, limited_memory
import pytest
from sweeps import jpeg, picture
import torch

MIB = 1 << 20


def set_limit(num_bytes):
    """Do what `ulimit -Sd` does; returns what was set."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, hard))
    return soft


@pytest.fixture
def unlimited():
    before = set_limit(resource.RLIM_INFINITY)
    yield
    set_limit(before)


def test_a_command_gets_a_share_of_the_memory_that_is_free(unlimited):
    before = available_bytes()
    with limited_memory() as limit:
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == limit
        assert limit < before
        assert limit == pytest.approx(0.9 * before, rel=0.2)
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY


def test_a_limit_of_the_user_stays(unlimited):
    set_limit(200 << 30)
    with limited_memory() as limit:
        assert limit == resource.getrlimit(resource.RLIMIT_DATA)[0] == 200 << 30
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 200 << 30


def test_a_process_can_lift_the_limit_of_its_parent(unlimited):
    code = (
        'import resource; from p2d_node.memory_limit import lift_limit; lift_limit(); '
        'print(resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY)'
    )
    with limited_memory():
        run = subprocess.run([sys.executable, '-c', code], capture_output=True, check=True)
    assert run.stdout == b'True\n'


@pytest.mark.parametrize(
    'allocate',
    [
        bytearray,
        partial(np.ones, dtype=np.uint8),
        partial(torch.ones, dtype=torch.uint8),
    ],
    ids=['python', 'numpy', 'torch'],
)
def test_each_library_reports_memory_that_is_over(allocate, unlimited):
    with limited_memory() as limit, pytest.raises((MemoryError, RuntimeError)) as raised:
        allocate(int(limit))
    assert is_out_of_memory(raised.value)


def test_a_frame_for_which_there_is_no_memory_is_not_called_damaged(unlimited):
    image = jpeg(picture(height=6000, width=8000))
    with limited_memory():
        set_limit(200 * MIB)  # less than this process has already
        with pytest.raises(ImageDecodeError, match='no memory is free'):
            decode_compressed('CAM_FRONT', image.format, image.data, max_pixels=50_000_000)


def test_a_verb_without_memory_ends_in_one_line(monkeypatch, unlimited, capsys):
    monkeypatch.setattr(Verb, '__call__', lambda _verb, _parsed: bytearray(int(available_bytes())))
    assert main(['inspect-engine']) == EXIT_NO_MEMORY
    err = capsys.readouterr().err
    assert err.startswith('p2d inspect-engine: needs more than ')
    assert err.count('\n') == 1
    assert 'ulimit -Sd' in err


def test_other_faults_of_a_verb_are_not_taken_for_missing_memory(monkeypatch):
    def fail(_verb, _parsed):
        raise RuntimeError('a fault of the program')

    monkeypatch.setattr(Verb, '__call__', fail)
    with pytest.raises(RuntimeError, match='a fault of the program'):
        main(['inspect-engine'])


@pytest.mark.attack(
    'a data set, within the sizes that a file may have, that needs more memory than is free',
    'the command ends in one line at its limit: nine tenths of the free memory, or `ulimit -d`',
)
def test_a_command_has_a_limit_of_memory(tmp_path):
    small, large = (convert(tmp_path, num_values) for num_values in (1, 36_000_000))
    assert small.returncode == EXIT_BAD_INPUT
    assert 'not DriveLM data' in small.stderr
    assert large.returncode == EXIT_NO_MEMORY
    assert large.stderr.startswith('p2d make-bag: needs more than 1.2 GiB')
    assert large.stderr.count('\n') == 1


def convert(folder, num_values):
    """Read so many values of 56 bytes with 1,200 MiB, of which the libraries may take 750."""
    questions = folder / 'questions.json'
    questions.write_text(f'[{"0.50000," * num_values}0.5]')
    words = ['make-bag', '--drivelm', questions, '--images', folder, '--out', folder / 'bag']
    return subprocess.run(
        [sys.executable, '-m', 'p2d_node.cli.main', *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=partial(set_limit, 1200 * MIB),
    )
