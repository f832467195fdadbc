"""The folder holds together as nuScenes' own tables do, and p2d_node reads it."""

from __future__ import annotations

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from p2d_node.bags.drivelm import read_drivelm_images
from p2d_node.bags.nuscenes import NuscenesSelection, read_nuscenes_images
from p2d_node.bags.writing import write_bag
from p2d_node.cli.main import main as p2d
from p2d_node.errors import ConfigError
from p2d_node.records import NUSCENES_CAMERAS
from p2d_sim.cameras import CAMERAS
from p2d_sim.cli.world import main
from p2d_sim.generated import generate_images
from p2d_sim.nuscenes_folder import FolderOptions, VERSION, write_nuscenes_folder
from p2d_sim.nuscenes_tables import camera_quaternion
from p2d_sim.questions import LETTERS
import pytest

Tables = Mapping[str, list[dict[str, Any]]]
OPTIONS = FolderOptions(
    scenarios=('lead-brakes', 'pedestrian-crosses'), seed=2, duration_s=1.5, height=90, width=160
)

REFERENCES = {
    ('sample', 'scene_token'): 'scene',
    ('sample_data', 'sample_token'): 'sample',
    ('sample_data', 'ego_pose_token'): 'ego_pose',
    ('sample_data', 'calibrated_sensor_token'): 'calibrated_sensor',
    ('calibrated_sensor', 'sensor_token'): 'sensor',
    ('scene', 'log_token'): 'log',
    ('scene', 'first_sample_token'): 'sample',
    ('scene', 'last_sample_token'): 'sample',
    ('sample_annotation', 'sample_token'): 'sample',
    ('sample_annotation', 'instance_token'): 'instance',
    ('sample_annotation', 'visibility_token'): 'visibility',
    ('instance', 'category_token'): 'category',
    ('instance', 'first_annotation_token'): 'sample_annotation',
    ('instance', 'last_annotation_token'): 'sample_annotation',
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('nuscenes') / 'synthetic'
    counts = list(write_nuscenes_folder(root, OPTIONS))
    assert counts[-1] == 2 * 3 * 6
    return root


@pytest.fixture(scope='module')
def tables(folder: Path) -> Tables:
    return {
        path.stem: json.loads(path.read_text(encoding='utf-8'))
        for path in (folder / VERSION).glob('*.json')
    }


def test_all_thirteen_tables_are_there_and_every_token_is_unique(tables: Tables) -> None:
    assert len(tables) == 13
    for name, rows in tables.items():
        tokens = [row['token'] for row in rows]
        assert len(set(tokens)) == len(tokens) > 0, name


def test_every_reference_leads_to_a_row(tables: Tables) -> None:
    for (table, column), target in REFERENCES.items():
        there = {row['token'] for row in tables[target]}
        for row in tables[table]:
            assert row[column] in there, (table, column)
    attributes = {row['token'] for row in tables['attribute']}
    for row in tables['sample_annotation']:
        assert set(row['attribute_tokens']) <= attributes


@pytest.mark.parametrize('table', ['sample', 'sample_data', 'sample_annotation'])
def test_chains_run_forth_and_back_in_order_of_time(tables: Tables, table: str) -> None:
    rows = {row['token']: row for row in tables[table]}
    heads = [row for row in rows.values() if row['prev'] == '']
    visited = 0
    for row in heads:
        visited += 1
        while row['next']:
            following = rows[row['next']]
            assert following['prev'] == row['token']
            if 'timestamp' in row:
                assert following['timestamp'] > row['timestamp']
            row = following  # noqa: PLW2901
            visited += 1
    assert visited == len(rows)


def test_pictures_are_where_the_tables_say_and_have_the_size_that_they_say(
    folder: Path, tables: Tables
) -> None:
    for row in tables['sample_data']:
        picture = cv2.imread(str(folder / row['filename']))
        assert picture.shape == (row['height'], row['width'], 3)
    for row in tables['map']:
        assert cv2.imread(str(folder / row['filename'])) is not None


@pytest.mark.parametrize('name', NUSCENES_CAMERAS)
def test_the_rotation_of_a_camera_is_the_one_it_draws_with(name: str) -> None:
    w, x, y, z = camera_quaternion(CAMERAS[name])
    turned = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    np.testing.assert_allclose(turned.T, CAMERAS[name].rotation(), atol=1e-12)


def test_p2d_node_reads_tables_and_questions_as_those_of_nuscenes_and_drivelm(
    folder: Path,
) -> None:
    images = list(read_nuscenes_images(folder, NuscenesSelection()))
    assert len(images) == 36
    assert {image.camera for image in images} == set(NUSCENES_CAMERAS)
    assert all(image.camera_matrix[0] > 0 for image in images)
    keyframes = list(read_drivelm_images(folder / 'drivelm.json', folder))
    assert [i.stamp_ns for i in keyframes] == [i.stamp_ns for i in images]


def test_questions_come_in_drivelms_groups_with_tags_and_the_cameras_that_matter(
    folder: Path,
) -> None:
    scenes = json.loads((folder / 'drivelm.json').read_text(encoding='utf-8'))
    items = [
        (group, item)
        for scene in scenes.values()
        for frame in scene['key_frames'].values()
        for group, content in frame['QA'].items()
        for item in content
    ]
    assert {group for group, _ in items} == {'perception', 'prediction', 'planning', 'behavior'}
    for _, item in items:
        assert item['tag'][0] in (0, 1, 2)
        assert item['cameras']
        assert set(item['cameras']) <= set(NUSCENES_CAMERAS)
        assert ('Select the correct answer' in item['Q']) == (item['A'] in LETTERS)
    objects = [
        key
        for scene in scenes.values()
        for frame in scene['key_frames'].values()
        for key in frame['key_object_infos']
    ]
    assert objects
    assert all(key.split(',')[1] in NUSCENES_CAMERAS for key in objects)


def test_a_data_set_is_never_written_over(folder: Path) -> None:
    with pytest.raises(ConfigError, match='exists already'):
        next(write_nuscenes_folder(folder, OPTIONS))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'bag.mcap').touch()
    with pytest.raises(ConfigError, match='exists already'):
        next(write_nuscenes_folder(tmp_path, OPTIONS))
    assert [path.name for path in tmp_path.iterdir()] == ['bag.mcap']


@pytest.mark.parametrize('name', ['file', 'file/x', 'x' * 300])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match=r'^root: .* cannot be written: [A-Z]'):
        next(write_nuscenes_folder(tmp_path / name, OPTIONS))


def test_the_command_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ['--out', str(tmp_path / 'x'), '--duration', '99']
    assert main(arguments) == 2
    assert 'got 99' in capsys.readouterr().err
    assert main(['--out', str(tmp_path / 'x'), '--size', 'big']) == 2
    for name, value, reason in (
        ('--seed', '-1', '--seed: got -1, allowed: 0 or more'),
        ('--size', '10x10', '--size: got 10x10, allowed: 32 to 4096'),
        ('--duration', 'nan', '--duration: got nan'),
    ):
        capsys.readouterr()
        arguments = ['--out', str(tmp_path / 'x'), '--random-scenes', '1', name, value]
        assert main(arguments) == 2
        assert reason in capsys.readouterr().err
    assert main(['--out', str(tmp_path.parent)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'world: --out: {tmp_path.parent} ')
    assert line.endswith('exists already; remove it or name another folder')
    assert not (tmp_path / 'x').exists()


def test_make_bag_draws_a_synthetic_drive_and_refuses_an_unknown_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ['make-bag', '--out', str(tmp_path / 'bag'), '--sweeps', '1', '--json']
    assert p2d([*arguments, '--synthetic', 'lead-brakes']) == 0
    assert json.loads(capsys.readouterr().out)['images'] == 6
    arguments[2] = str(tmp_path / 'another')
    assert p2d([*arguments, '--synthetic', 'flight']) == 2
    assert 'lead-brakes' in capsys.readouterr().err


def test_generated_images_fill_a_bag_and_are_the_same_every_time(tmp_path: Path) -> None:
    first = list(generate_images(2, height=90, width=160, seed=3))
    again = list(generate_images(2, height=90, width=160, seed=3))
    assert [image.jpeg for image in first] == [image.jpeg for image in again]
    assert [image.stamp_ns for image in first] == sorted(image.stamp_ns for image in first)
    assert write_bag(first, tmp_path / 'bag') == 12
    with pytest.raises(ConfigError, match=r"^scenario: got 'nothing'"):
        list(generate_images(1, scenario='nothing'))


def test_random_scenes_are_single_keyframes_of_different_streets(tmp_path: Path):
    words = ['--random-scenes', '3', '--duration', '0.5', '--seed', '1100000000']
    assert main(['--out', str(tmp_path / 'a'), *words, '--size', '160x90']) == 0
    scenes = json.loads((tmp_path / 'a' / 'drivelm.json').read_text())
    frames = [list(scene['key_frames'].values()) for scene in scenes.values()]
    assert [len(frame) for frame in frames] == [1, 1, 1]
    questions = [
        {item['Q'] for group in frame['QA'].values() for item in group} for (frame,) in frames
    ]
    assert all(len(asked) > 15 for asked in questions)
    assert questions[0] != questions[1] != questions[2]
    pictures = [
        (tmp_path / 'a' / frame['image_paths']['CAM_FRONT']).read_bytes() for (frame,) in frames
    ]
    assert len(set(pictures)) == 3
    logs = json.loads((tmp_path / 'a' / VERSION / 'log.json').read_text())
    assert {log['location'] for log in logs} == {'random'}
