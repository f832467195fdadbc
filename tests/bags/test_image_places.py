"""Names in data files that lead out of the folder of the images, or to no file."""

from __future__ import annotations

import json
import os
import re
import time

from p2d_node.bags.drivelm import read_drivelm_images
from p2d_node.bags.image_files import (
    file_below,
    read_image,
    resolve_image,
    sample_name,
    write_below,
)
from p2d_node.bags.nuscenes import NuscenesSelection, read_nuscenes_images, TABLES
from p2d_node.errors import ConfigError
from p2d_node.evaluation.answering import check_images, Keyframe, load_sweep, read_camera_image
from p2d_node.evaluation.drivelm_questions import read_questions
from p2d_node.evaluation.drivelmm_o1_questions import read_o1_questions
import pytest
from sweeps import jpeg, picture

FILE = 'a__CAM_FRONT__1533280036154844.jpg'
NAME = f'samples/CAM_FRONT/{FILE}'


@pytest.fixture
def root(tmp_path):
    """A folder of images with one picture, beside a private picture."""
    folder = tmp_path / 'images'
    (folder / NAME).parent.mkdir(parents=True)
    (folder / NAME).write_bytes(jpeg(picture(0)).data)
    (tmp_path / 'private').mkdir()
    (tmp_path / 'private' / FILE).write_bytes(jpeg(picture(1)).data)
    return folder


def absolute(root):
    return str(root.parent / 'private' / FILE)


def upward(root):
    return f'../private/{FILE}'


def upward_later(root):
    return f'CAM_FRONT/../../../private/{FILE}'


def link(root):
    (root / FILE).symlink_to(root.parent / 'private' / FILE)
    return FILE


def linked_folder(root):
    (root / 'more').symlink_to(root.parent / 'private')
    return f'more/{FILE}'


def device(root):
    (root / FILE).symlink_to('/dev/zero')
    return FILE


@pytest.mark.parametrize('make', [absolute, upward, upward_later, link, linked_folder, device])
@pytest.mark.attack(
    'an image name in DriveLM, DriveLMM-o1 or nuScenes data leads out of the folder of the images',
    'absolute names, `..` and symbolic links that lead out are refused',
)
def test_a_name_does_not_lead_out_of_the_folder(root, make):
    name = make(root)
    with pytest.raises(ConfigError, match=r'leads out of .*allowed: files in this folder'):
        file_below(root, name)


@pytest.mark.parametrize('make', [absolute, upward, upward_later, link, linked_folder, device])
@pytest.mark.attack(
    'a name in the data leads out of the folder that images are written to',
    'absolute names, `..` and symbolic links that lead out are refused',
)
def test_nothing_is_written_out_of_the_folder(root, make):
    private = root.parent / 'private' / FILE
    before = private.read_bytes()
    with pytest.raises(ConfigError, match='leads out of'):
        write_below(root, make(root), b'other')
    assert private.read_bytes() == before


def test_a_file_that_exists_is_not_written_to(root):
    (root / FILE).symlink_to(root / NAME)
    before = (root / NAME).read_bytes()
    for name in (NAME, FILE):
        with pytest.raises(FileExistsError):
            write_below(root, name, b'other')
    assert (root / NAME).read_bytes() == before
    write_below(root, f'more/{NAME}', b'other')
    assert (root / 'more' / NAME).read_bytes() == b'other'


def fifo(root):
    os.mkfifo(root / FILE)
    return FILE


def folder(root):
    (root / FILE).mkdir()
    return FILE


@pytest.mark.parametrize('make', [fifo, folder])
@pytest.mark.attack(
    'an image in a data set is a FIFO, which is never read to its end, or a folder',
    'only files are opened',
)
def test_a_name_leads_to_a_file(root, make):
    with pytest.raises(ConfigError, match=f'{FILE}.: not a file'):
        file_below(root, make(root))


@pytest.mark.parametrize('name', [f'a\0{FILE}', f'{"a" * 300}{FILE}', f'{"a/" * 3000}{FILE}'])
def test_a_name_that_no_file_has_is_one_line(root, name):
    with pytest.raises(ConfigError) as caught:
        read_image(file_below(root, name), root=root, camera='CAM_FRONT', stamp_ns=1)
    assert len(str(caught.value)) < 8000
    assert not os.path.exists(root / 'a')


@pytest.mark.attack(
    'another user of the folder of the images swaps one for a link after its name was checked',
    'the file that was opened is checked: it lies in the folder',
)
def test_a_file_that_becomes_a_link_is_not_read(root):
    path = file_below(root, NAME)
    path.unlink()
    path.symlink_to(root.parent / 'private' / FILE)
    with pytest.raises(ConfigError, match=f'cannot be read: it leads out of {root}'):
        read_image(path, root=root, camera='CAM_FRONT', stamp_ns=1)
    with pytest.raises(ConfigError, match=f'cannot be read: it leads out of {root}'):
        read_camera_image(path, root, 10_000_000)


def test_links_that_stay_in_the_folder_and_a_link_to_the_folder_are_followed(root):
    (root / 'samples' / FILE).symlink_to(root / NAME)
    (root.parent / 'data').symlink_to(root)
    for path in (root / 'samples' / FILE, root.parent / 'data' / NAME):
        base = root if path.is_relative_to(root) else root.parent / 'data'
        file = file_below(base, str(path.relative_to(base)))
        assert read_camera_image(file, base, 10_000_000) == jpeg(picture(0)).data


@pytest.mark.attack(
    'a nuScenes table with a file name of megabytes, each part of which is looked up',
    'refused above 1024 characters',
)
def test_a_long_name_is_refused_at_once(root):
    with pytest.raises(ConfigError, match='file name of 2000005 characters, allowed: up to 1024'):
        file_below(root, 'a/' * 1_000_000 + 'x.jpg')


def test_a_missing_file_is_left_to_the_caller(root):
    assert file_below(root, 'samples/none.jpg') == root / 'samples/none.jpg'


@pytest.mark.parametrize('make', [absolute, link])
def test_every_reader_of_data_refuses_such_a_name(root, make):
    name = make(root)
    for read in (_demo, _bag_of_drivelm, _bag_of_nuscenes, _drivelm, _drivelmm_o1):
        with pytest.raises(ConfigError, match=f'^{re.escape(repr(name))}: leads out of'):
            read(root, name)


def _demo(root, name):
    resolve_image(name, root)


def _bag_of_drivelm(root, name):
    (root / 'data.json').write_text(json.dumps([{'image': [name]}]))
    list(read_drivelm_images(root / 'data.json', root))


def _bag_of_nuscenes(root, name):
    tables = {
        'scene': [{'token': 's', 'name': 's'}],
        'sample': [{'token': 'k', 'scene_token': 's'}],
        'sensor': [{'token': 'c', 'channel': 'CAM_FRONT'}],
        'calibrated_sensor': [{'token': 'm', 'sensor_token': 'c', 'camera_intrinsic': []}],
        'sample_data': [
            {
                'filename': name,
                'timestamp': 1_533_280_036_154_844,
                'is_key_frame': True,
                'sample_token': 'k',
                'calibrated_sensor_token': 'm',
            }
        ],
    }
    (root / 'v1').mkdir()
    for table, rows in tables.items():
        (root / 'v1' / f'{table}.json').write_text(json.dumps(rows))
    list(read_nuscenes_images(root, NuscenesSelection()))


def _drivelm(root, name):
    frames = {
        'f': {'QA': {'planning': [{'Q': 'q', 'A': 'a'}]}, 'image_paths': {'CAM_FRONT': name}}
    }
    (root / 'data.json').write_text(json.dumps({'s': {'key_frames': frames}}))
    _answer(root, read_questions(root / 'data.json'))


def _drivelmm_o1(root, name):
    item = {'idx': 's_f_1', 'image': [name], 'question': 'q', 'steps': 's', 'final_answer': 'A'}
    (root / 'data.json').write_text(json.dumps([item]))
    _answer(root, read_o1_questions(root / 'data.json'))


def _answer(root, questions):
    keyframe = Keyframe('f', tuple(questions))
    with pytest.raises(ConfigError, match='leads out of'):
        load_sweep(keyframe, root, ['CAM_FRONT'])
    check_images([keyframe], root, ['CAM_FRONT'])


def test_a_name_that_no_file_can_have_is_refused_at_once():
    begin = time.monotonic()
    with pytest.raises(ConfigError, match='not a nuScenes image name'):
        sample_name('samples/' + '__CAM_' * 60_000)
    assert time.monotonic() - begin < 1.0


@pytest.mark.attack(
    'tables of nuScenes that are links to files outside of the data set, or lie in such a folder',
    'refused: nothing outside of the named folder is read',
)
@pytest.mark.parametrize('linked', ['v1.0-mini', 'v1.0-mini/sample_data.json'])
def test_tables_do_not_lead_out_of_the_folder(root, linked):
    (root / 'v1.0-mini').mkdir()
    for name in TABLES:
        (root / 'v1.0-mini' / f'{name}.json').write_text('[]')
    (root / linked).rename(root.parent / 'outside')
    (root / linked).symlink_to(root.parent / 'outside')
    with pytest.raises(ConfigError, match=r'leads out of .*allowed: files in this folder'):
        list(read_nuscenes_images(root, NuscenesSelection(version='v1.0-mini')))
