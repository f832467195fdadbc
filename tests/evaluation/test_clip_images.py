"""Which images belong to the clip of a keyframe, and what `p2d evaluate` says of them."""

from dataclasses import replace
import json
import os
import shutil
import time
from types import SimpleNamespace

import cv2
from memory import peak_growth_bytes
from p2d_node.bags.image_files import camera_and_stamp_of, read_image
from p2d_node.bags.writing import write_bag
from p2d_node.cli.main import EXIT_BAD_INPUT, main
from p2d_node.clips import ClipSettings
from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError
from p2d_node.evaluation.answering import answer_keyframe, AnswerJob, group_keyframes
from p2d_node.evaluation.bag_keyframes import keyframes_of_bag
from p2d_node.evaluation.clip_images import earlier_images
from p2d_node.evaluation.drivelm_questions import read_questions
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.units import NS_PER_MS
import pytest
from sweeps import picture

START_US = 1_533_151_603_500_000
KEYFRAMES_MS = (0, 500, 1000)
SWEEPS_MS = (250, 333, 417, 900)
QUESTIONS = (('What is ahead?', 'A car.'), ('Is it red?', 'No.'), ('Choose.', 'A'))


def name_of(folder, camera, time_ms, log='a'):
    return f'{folder}/{camera}/{log}__{camera}__{START_US + 1000 * time_ms}.jpg'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Three keyframes at 2 Hz, four sweeps between them, and an image of another log."""
    root = tmp_path_factory.mktemp('clips')
    places = [('samples', t, 'a') for t in KEYFRAMES_MS] + [('sweeps', t, 'a') for t in SWEEPS_MS]
    for number, (kind, time_ms, log) in enumerate([*places, ('sweeps', 800, 'another')]):
        for index, camera in enumerate(NUSCENES_CAMERAS):
            path = root / name_of(kind, camera, time_ms, log)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture(10 * number + index))
    qas = [{'Q': q, 'A': a, 'tag': [0] if len(a) == 1 else [2]} for q, a in QUESTIONS]
    frames = {
        f'f{time_ms}': {
            'QA': {'perception': qas},
            'image_paths': {c: name_of('samples', c, time_ms) for c in NUSCENES_CAMERAS},
        }
        for time_ms in KEYFRAMES_MS
    }
    (root / 'data.json').write_text(json.dumps({'s': {'key_frames': frames}}))
    return root


def times_of(folder, time_ms, num_frames, interval_ms):
    names = {c: name_of('samples', c, time_ms) for c in NUSCENES_CAMERAS}
    clip = ClipSettings(num_frames, interval_ms * NS_PER_MS)
    found = earlier_images(folder, names, clip)
    return [
        (camera_and_stamp_of(folder / n['CAM_BACK'])[1] // 1000 - START_US) // 1000 for n in found
    ]


@pytest.mark.parametrize(
    ('time_ms', 'num_frames', 'interval_ms', 'expected'),
    [
        (500, 4, 83, [250, 333, 417]),
        (500, 2, 83, [417]),
        (500, 4, 100, [333, 417]),  # 250 is as near to 300 as to 200
        (1000, 4, 100, [900]),  # at 800 there is only an image of another log
        (1000, 3, 500, [0, 500]),
        (0, 4, 100, []),
        (1000, 1, 100, []),
    ],
)
def test_the_nearest_images_of_the_same_log_are_the_clip(
    folder, time_ms, num_frames, interval_ms, expected
):
    assert times_of(folder, time_ms, num_frames, interval_ms) == expected


def test_a_frame_that_one_camera_lacks_begins_the_clip(folder, tmp_path):
    (tmp_path / 'sweeps').mkdir()
    for kind in ('samples', 'sweeps'):
        for camera in NUSCENES_CAMERAS:
            if (kind, camera) != ('sweeps', 'CAM_FRONT'):
                (tmp_path / kind).mkdir(exist_ok=True)
                (tmp_path / kind / camera).symlink_to(folder / kind / camera)
    assert times_of(tmp_path, 500, 4, 83) == []


@pytest.fixture
def evaluate(folder, tmp_path, tiny_checkpoint, capsys):
    def run(out, *options):
        words = ['evaluate', '--data', str(folder / 'data.json'), '--model', str(tiny_checkpoint)]
        words += ['--out', str(tmp_path / out), '--max-new-tokens', '8', '--json', *options]
        code = main(words)
        captured = capsys.readouterr()
        if code:
            return code, captured.err
        answers = json.loads((tmp_path / out / 'submission.json').read_text())
        return json.loads(captured.out), {a['id']: a['answer'] for a in answers}

    return run


def test_answers_rest_on_the_clip_and_short_ones_are_counted(folder, evaluate):
    images = ('--images', str(folder))
    alone, texts = evaluate('alone', *images)
    assert alone['num_frames'] == {'1': 3}
    clips, others = evaluate('clips', *images, '--frames-per-camera', '4')
    assert clips['num_frames'] == {'1': 1, '2': 1, '3': 1}
    assert any(
        note.startswith('3 of 3 keyframes have not all 4 frames') for note in clips['notes']
    )
    assert [i for i in texts if texts[i] != others[i] and '_f0_' in i] == []
    assert texts != others
    by_keyframes, _ = evaluate(
        'keyframes', *images, '--frames-per-camera', '3', '--frame-interval-ms', '500'
    )
    assert by_keyframes['num_frames'] == {'1': 1, '2': 1, '3': 1}

    code, error = evaluate('alone', *images, '--frames-per-camera', '4')
    assert code == EXIT_BAD_INPUT
    assert 'frames_per_camera' in error


def test_a_bag_gives_the_clips_that_its_images_give(folder, tmp_path, evaluate):
    paths = list(folder.glob('s*/*/a__*.jpg'))
    images = [
        read_image(path, root=path.parent, camera=camera, stamp_ns=stamp_ns)
        for path in paths
        for camera, stamp_ns in [camera_and_stamp_of(path)]
    ]
    write_bag(sorted(images, key=lambda image: image.stamp_ns), tmp_path / 'bag')
    clip = ('--frames-per-camera', '4')
    report, answers = evaluate('bag', '--bag', str(tmp_path / 'bag'), *clip)
    expected, texts = evaluate('images', '--images', str(folder), *clip)
    assert report['num_frames'] == expected['num_frames']
    assert answers == texts


@pytest.mark.attack(
    'a small bag for p2d evaluate with clips, with 100,000 images a microsecond apart',
    'only the images that the clips need are decoded and written, each once',
)
def test_only_the_images_of_clips_are_written(folder, tmp_path):
    names = {'CAM_BACK': name_of('samples', 'CAM_BACK', 500)}
    image = read_image(folder / names['CAM_BACK'], root=folder, camera='CAM_BACK', stamp_ns=0)
    near_ns = 1000 * (START_US + 400_000)
    stamps_ns = [near_ns + 1000 * i for i in range(300)] + [near_ns + 1, near_ns + 2]
    stamps_ns += [1000 * (START_US + 300_000), 1000 * (START_US + 500_000)]
    images = [replace(image, stamp_ns=stamp_ns) for stamp_ns in sorted(stamps_ns)]
    write_bag(images, tmp_path / 'bag')
    clip = ClipSettings(4, 100 * NS_PER_MS)
    question = SimpleNamespace(images=names)
    with keyframes_of_bag(tmp_path / 'bag', [question], clip) as (root, _):
        found = sorted(root.rglob('*.jpg'))
        clips = earlier_images(root, names, clip)
    times_us = [camera_and_stamp_of(path)[1] // 1000 - START_US for path in found]
    assert sorted(times_us) == [300_000, 400_000, 500_000]
    assert len(clips) == 2


@pytest.mark.attack(
    'images of clips of up to 128 MiB that take no room on the disk, all of which are read',
    'refused by the size of the file or as sparse, before the first is read',
)
@pytest.mark.parametrize(
    ('num_bytes', 'reason'), [(24 << 20, 'got 25165824 bytes, allowed:'), (4 << 20, 'a hole')]
)
def test_images_of_clips_are_limited_before_they_are_read(folder, tmp_path, num_bytes, reason):
    shutil.copytree(folder, tmp_path / 'images')
    for path in tmp_path.glob('images/sweeps/*/*'):
        os.truncate(path, num_bytes)
    config = DriveConfig(max_image_pixels=1 << 20, frames_per_camera=4, frame_interval_ms=83.0)
    job = AnswerJob(config=config, image_root=tmp_path / 'images')
    *_, keyframe = group_keyframes(read_questions(folder / 'data.json'))

    def answer():
        with pytest.raises(ConfigError, match=rf'__\d+\.jpg: cannot be read: .*{reason}'):
            answer_keyframe(None, keyframe, job)

    assert peak_growth_bytes(answer) < 16 << 20


@pytest.mark.attack(
    'a folder of images with hundreds of thousands of names, those of samples/ after those of '
    'sweeps/',
    'the time grows as the number of names does',
)
def test_many_images_are_put_in_order_at_once(monkeypatch, tmp_path):
    def seconds(case, num_samples):
        def names(folder):
            kind, start = ('samples', 10**6) if 'samples' in str(folder) else ('sweeps', 0)
            count = num_samples if kind == 'samples' else 200_000
            return [f'a__CAM_BACK__{START_US + start + i}.jpg' for i in range(count)]

        monkeypatch.setattr(os, 'listdir', names)
        image = {'CAM_BACK': f'samples/CAM_BACK/a__CAM_BACK__{START_US + 10**6}.jpg'}
        start_s = time.process_time()
        assert len(earlier_images(tmp_path / case, image, ClipSettings(2, 900 * NS_PER_MS))) == 1
        return time.process_time() - start_s

    assert seconds('many', 200_000) < 4 * seconds('few', 1)
