from camera_rig import CameraRig, wait_until
from p2d_msgs.msg import DrivingAnswer
from p2d_node.cli.main import main
from p2d_node.cli.sweep_feed import SweepFeed
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros.camera_frames import CameraFrames
from p2d_node.viewers.shown_sweep import image_format
import pytest


@pytest.mark.parametrize('name', ['/p2d/', 'bad name!', 'ü', '//', 'p2d'])
def test_a_name_that_no_node_has_is_refused(name, capsys):
    assert main(['watch', '--node', name, '--duration', '1']) == 2
    assert f'p2d watch: --node: got {name!r}, allowed: the full name' in capsys.readouterr().err


class Collector:
    """A viewer that keeps what it shows."""

    def __init__(self):
        self.sweeps = []

    def show(self, sweep):
        self.sweeps.append(sweep)


@pytest.mark.parametrize('raw', [False, True])
def test_viewers_get_views_kept_tokens_answers_and_times_of_each_sweep_once(
    drive, node, watcher, raw
):
    rig = CameraRig(node, raw=raw)
    frames, viewer = CameraFrames(node, '/p2d'), Collector()
    drive(**{f'cameras__{name}__transport': 'raw' for name in NUSCENES_CAMERAS if raw})
    feed = SweepFeed(watcher, frames, [viewer])
    # Two subscribers per camera: the drive node and the frames.
    wait_until(lambda: feed.update() or min(map(count_of, rig.publishers.values())) == 2)
    wait_until(lambda: rig.heard)
    for number in range(2):
        stamp_ns = rig.publish_sweep()
        wait_until(lambda: feed.update() or len(viewer.sweeps) > number)  # noqa: B023
        sweep = viewer.sweeps[-1]
        assert (sweep.number, sweep.stamp_ns) == (number, stamp_ns)
        assert set(sweep.views) == set(sweep.tokens_kept) == set(NUSCENES_CAMERAS)
        assert all(len(view) > 100 for view in (*sweep.views.values(), sweep.kept_tokens))
        assert image_format(sweep.kept_tokens) == 'jpeg'
        ((question, answer),) = sweep.answers
        assert question == 'What should the ego vehicle do next?'
        assert answer == watcher.answers[-1].answer
        assert sweep.times_ms['total_ms'] == watcher.timings[-1].total_ms
    feed.update()
    assert len(viewer.sweeps) == 2


@pytest.mark.attack(
    'A peer publishes answers of megabytes, with a million cameras, for `p2d watch`',
    'kept and shown up to 20,000 characters per text and 64 cameras',
)
def test_answers_without_end_of_a_peer_are_cut(node, watcher):
    publisher = node.create_publisher(DrivingAnswer, '/p2d/answer', 10)
    wait_until(publisher.get_subscription_count)
    publisher.publish(
        DrivingAnswer(
            **dict.fromkeys(('question', 'answer', 'model', 'encoder', 'cut'), 'x' * 2_000_000),
            cameras=['c'] * 100_000,
        )
    )
    wait_until(lambda: watcher.answers)
    (answer,) = watcher.answers
    texts = (answer.question, answer.answer, answer.model, answer.encoder, answer.cut)
    assert {len(text) for text in texts} == {20_003}
    assert len(answer.cameras) == 64


def count_of(publisher) -> int:
    return publisher.get_subscription_count()
