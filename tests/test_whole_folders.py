"""Locks that die with their process, and folders that are complete or absent."""

import os
import signal
import subprocess
import sys
import time

from p2d_node.engine_build.engine_folders import engine_lock, new_engine_folder
from p2d_node.errors import ConfigError
from p2d_node.vision_encoder.engine_checks import check_place
from p2d_node.vision_encoder.engine_store import list_all_engines
from p2d_node.vision_encoder.safe_place import check_owner
from p2d_node.whole_folders import (
    find_leftovers,
    LOCK_FILE,
    locked,
    MARKER_FILE,
    new_folder,
    publish,
)
import pytest

BUSY = 'another process works here'

HOLDER = """
import signal, sys
from pathlib import Path
from p2d_node.whole_folders import locked

with locked(Path(sys.argv[1]), 'busy'):
    print('held', flush=True)
    signal.pause()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    command = [sys.executable, '-c', HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.wait(30)


def take_and_release(engine_dir):
    with engine_lock(engine_dir):
        pass


def fail():
    raise RuntimeError('fault')


def test_a_lock_that_another_process_holds_is_refused_at_once(tmp_path, holder):
    before = time.monotonic()
    with pytest.raises(ConfigError, match=BUSY), locked(tmp_path, BUSY):
        pass
    assert time.monotonic() - before < 2
    assert holder.poll() is None


def test_a_killed_process_leaves_no_lock(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait(30)
    assert (tmp_path / LOCK_FILE).exists()
    with locked(tmp_path, BUSY):
        pass


def test_a_lock_is_free_after_its_block_even_if_that_fails(tmp_path):
    with pytest.raises(RuntimeError, match='fault'), locked(tmp_path, BUSY):
        fail()
    with locked(tmp_path, BUSY):
        with pytest.raises(ConfigError, match=BUSY), locked(tmp_path, BUSY):
            pass
        with pytest.raises(ConfigError, match=BUSY), locked(tmp_path, BUSY):
            pass
    with locked(tmp_path, BUSY):
        pass


def test_a_lock_file_is_not_an_engine(tmp_path):
    engine_dir = tmp_path / 'engines'
    take_and_release(engine_dir)
    assert (engine_dir / LOCK_FILE).exists()
    assert list_all_engines(engine_dir) == []


def test_what_a_build_writes_can_be_changed_by_its_owner_only(tmp_path):
    tmp_path.chmod(0o755)
    before = os.umask(0)
    try:
        with engine_lock(tmp_path), new_engine_folder(tmp_path / 'model') as folder:
            (folder / 'model.onnx').touch()
            check_place(tmp_path, folder)
            check_owner(folder, (folder / 'model.onnx').stat())
        assert os.umask(0o077) == 0
        with engine_lock(tmp_path):
            (tmp_path / 'private').touch()
        assert (tmp_path / 'private').stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_a_symbolic_link_in_place_of_the_lock_file_is_not_followed(tmp_path):
    target, engine_dir = tmp_path / 'precious', tmp_path / 'engines'
    engine_dir.mkdir()
    target.write_text('precious')
    (engine_dir / LOCK_FILE).symlink_to(target)
    with pytest.raises(ConfigError, match=r'engine_dir: .* cannot be written') as caught:
        take_and_release(engine_dir)
    assert len(str(caught.value).splitlines()) == 1
    assert target.read_text() == 'precious'


def test_a_symbolic_link_to_a_missing_file_creates_nothing(tmp_path):
    target = tmp_path / 'absent'
    (tmp_path / LOCK_FILE).symlink_to(target)
    with pytest.raises(OSError, match='symbolic links'), locked(tmp_path, BUSY):
        pass
    assert not target.exists()


@pytest.mark.parametrize('obstacle', ['file for the folder', 'folder for the lock'])
def test_a_folder_that_cannot_be_locked_is_one_clear_line(tmp_path, obstacle):
    engine_dir = tmp_path / 'engines'
    if obstacle == 'file for the folder':
        engine_dir.write_text('')
    else:
        (engine_dir / LOCK_FILE).mkdir(parents=True)
    reason = f'engine_dir: {engine_dir} cannot be written: '
    with pytest.raises(ConfigError, match=reason) as caught:
        take_and_release(engine_dir)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.endswith('; name another folder')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_folder_without_write_permission_is_one_clear_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match='cannot be written: Permission denied'):
        take_and_release(tmp_path)


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path):
    final = tmp_path / 'final'
    with new_folder(tmp_path, '.work-') as folder:
        (folder / 'a').write_text('a')
        assert not final.exists()
        assert publish(folder, final) == final
    assert [path.name for path in tmp_path.iterdir()] == ['final']
    assert [path.name for path in final.iterdir()] == ['a']
    assert (final / 'a').read_text() == 'a'
    assert (final / 'a').stat().st_mode & 0o777 == 0o644


def test_a_folder_whose_work_fails_is_removed(tmp_path):
    with pytest.raises(RuntimeError, match='fault'), new_folder(tmp_path, '.work-'):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_only_real_folders_that_were_made_here_count_as_left_over(tmp_path):
    precious, parent = tmp_path / 'precious', tmp_path / 'parent'
    precious.mkdir()
    (precious / MARKER_FILE).touch()
    parent.mkdir()
    (parent / '.work-link').symlink_to(precious)
    (parent / '.work-holiday').mkdir()
    (parent / '.work-file').touch()
    (tmp_path / 'link').symlink_to(parent)
    with new_folder(parent, '.work-') as folder:
        assert find_leftovers(parent, '.work-') == [folder]
        assert find_leftovers(tmp_path / 'link', '.work-') == []
        assert find_leftovers(parent, '.other-') == []
    assert find_leftovers(parent, '.work-') == []
    assert find_leftovers(tmp_path / 'absent', '.work-') == []


def test_nobody_can_guess_the_name_of_a_new_folder(tmp_path):
    with new_folder(tmp_path, '.work-') as first, new_folder(tmp_path, '.work-') as second:
        assert first != second
        assert len(first.name) >= len('.work-') + 8


def test_a_folder_that_exists_is_not_replaced(tmp_path):
    final = tmp_path / 'final'
    final.mkdir()
    (final / 'mine').write_text('mine')
    with new_folder(tmp_path, '.work-') as folder:
        (folder / 'a').write_text('a')
        with pytest.raises(OSError, match='not empty'):
            publish(folder, final)
    assert [path.name for path in final.iterdir()] == ['mine']
