"""What the demo plays and asks of DriveLM's data, and the files that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace as Message

import cv2
import numpy as np
from p2d_node.cli.demo import played_outputs
from p2d_node.cli.demo_drive import drivelm_drive, MAX_QUESTION_LENGTH, NUM_QUESTIONS
from p2d_node.cli.demo_report import write_answers, write_latency_plot, write_picture, write_story
from p2d_node.errors import ConfigError
from p2d_node.records import NUSCENES_CAMERAS, StageTimes
from p2d_sim.nuscenes_folder import FolderOptions, write_nuscenes_folder
import pytest


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """Two drawn scenes of some keyframes, in DriveLM's format."""
    root = tmp_path_factory.mktemp('drawn') / 'data'
    options = FolderOptions(
        scenarios=('lead-brakes', 'cut-in'), seed=3, duration_s=1.5, height=90, width=160
    )
    for _ in write_nuscenes_folder(root, options):
        pass
    return root


def stamped(stamp_ns: int, **fields):
    stamp = Message(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return Message(header=Message(stamp=stamp), **fields)


def test_the_first_scene_is_played_with_its_own_questions_and_references(drawn):
    drive = drivelm_drive(drawn / 'drivelm.json', drawn)
    scenes = json.loads((drawn / 'drivelm.json').read_text())
    frames = next(iter(scenes.values()))['key_frames']
    assert len(drive.images) == len(frames) * len(NUSCENES_CAMERAS)
    stamps = [image.stamp_ns for image in drive.images]
    assert stamps == sorted(stamps)
    assert 1 <= len(drive.questions) <= NUM_QUESTIONS
    assert max(map(len, drive.questions)) <= MAX_QUESTION_LENGTH
    fronts = {image.stamp_ns for image in drive.images if image.camera == 'CAM_FRONT'}
    given = {
        (item['Q'], item['A'])
        for frame in frames.values()
        for items in frame['QA'].values()
        for item in items
    }
    assert drive.references
    for (stamp_ns, question), answer in drive.references.items():
        assert stamp_ns in fronts
        assert (question, answer) in given


def test_data_without_a_short_question_is_refused(drawn, tmp_path):
    scenes = json.loads((drawn / 'drivelm.json').read_text())
    for scene in scenes.values():
        for frame in scene['key_frames'].values():
            for items in frame['QA'].values():
                for item in items:
                    item['Q'] = 'What is <c1,CAM_FRONT,1.0,2.0>?'
    (tmp_path / 'data.json').write_text(json.dumps(scenes))
    with pytest.raises(ConfigError, match='no question of up to 100 characters'):
        drivelm_drive(tmp_path / 'data.json', drawn)


def test_the_story_shows_question_warning_answers_and_references(drawn, tmp_path):
    drive = drivelm_drive(drawn / 'drivelm.json', drawn)
    fronts = {i.stamp_ns: i.jpeg for i in drive.images if i.camera == 'CAM_FRONT'}
    answers = [stamped(stamp, question='Why?', answer='a truck ' * 20) for stamp in fronts]
    heights = []
    for references, warning in (({}, ''), ({(next(iter(fronts)), 'Why?'): 'x'}, 'It is wrong.')):
        path = tmp_path / 'story.png'
        write_story(fronts, answers, path, references=references, warning=warning)
        heights.append(cv2.imread(str(path)).shape[0])
    assert heights[1] > heights[0] > 250


def test_the_latency_plot_is_drawn(tmp_path):
    times = dict.fromkeys(StageTimes.__dataclass_fields__, 5.0)
    write_latency_plot([stamped(n * 10**9, **times) for n in range(3)], 'p2d', tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 5000


@pytest.fixture
def link(tmp_path):
    """A link named like a file of a demo, to a file of the user."""
    (tmp_path / 'victim').write_text('precious')
    link = tmp_path / 'output'
    link.symlink_to('victim')
    return link


JPEG = cv2.imencode('.jpg', np.zeros((90, 160, 3), np.uint8))[1].tobytes()
TIMES = dict.fromkeys(StageTimes.__dataclass_fields__, 1.0)


def draw_story(path: Path) -> None:
    write_story({0: JPEG}, [stamped(0, question='?', answer='!')], path, references={})


@pytest.mark.attack(
    'a link in the output folder of a demo, named like one of its files, to a file of the user',
    'the link is replaced; its target stays as it was',
)
@pytest.mark.parametrize(
    'write',
    [
        lambda path: write_answers([], {}, path),
        lambda path: write_picture(Message(data=bytes(12), height=2, width=2), path),
        draw_story,
        lambda path: write_latency_plot([stamped(0, **TIMES)], 'p2d', path),
    ],
    ids=['answers', 'picture', 'story', 'plot'],
)
def test_a_link_in_place_of_a_file_of_a_demo_is_replaced(link, write):
    write(link)
    assert link.is_file()
    assert not link.is_symlink()
    assert link.with_name('victim').read_text() == 'precious'


@pytest.mark.attack(
    'a node publishes answers under the name of the one of `p2d demo`, about sweeps of its own',
    'left out: the demo knows what it plays, and shows each sweep once',
)
def test_a_demo_shows_the_sweeps_that_it_played():
    def answer(stamp_ns, text):
        return stamped(stamp_ns, question='Is it wet?', answer=text)

    watcher = Message(
        answers=[answer(1, 'forged'), answer(5, 'no'), answer(5, 'yes'), answer(7, 'no')],
        timings=[stamped(1), stamped(5), stamped(5), stamped(6), stamped(9)],
        pictures=[stamped(1), stamped(5)],
    )
    outputs = played_outputs(watcher, {5, 6, 7})
    assert [answer.answer for answer in outputs.answers] == ['yes', 'no']
    assert [timing.header.stamp.nanosec for timing in outputs.timings] == [5]
    assert [picture.header.stamp.nanosec for picture in outputs.pictures] == [5]
