"""Two replays of one bag give the same answers."""

from camera_rig import wait_until
from converter_bags import capture
from p2d_node.bags.reading import BagReader
from p2d_node.bags.writing import write_bag
from p2d_node.ros.conversions import to_nanoseconds
from p2d_node.ros.replay import Replayer, ReplayOptions
import rclpy

QUESTIONS = ['What should the ego vehicle do next?', 'Is there a car?']


def test_two_replays_of_one_bag_give_identical_answers(drive, watcher, make_context, tmp_path):
    images = capture(3, period_ms=1100.0)
    write_bag(images, tmp_path / 'bag', compression='zstd')
    # The watcher may have discovered the node after its answers about the first sweep.
    later = {image.stamp_ns for image in images[6:]}
    drive(questions=QUESTIONS)
    replays = []
    for _ in range(2):
        num_before = len(watcher.answers)

        def answers(num_before=num_before) -> list:
            found = [_content(answer) for answer in watcher.answers[num_before:]]
            return [answer for answer in found if later.issuperset(answer[0])]

        node = rclpy.create_node('p2d_replay', context=make_context())
        with BagReader(tmp_path / 'bag') as bag:
            replayer = Replayer(node, bag, ReplayOptions())
            assert replayer.wait_for_subscribers(lambda: False)
            replayer.play(lambda: False)
            wait_until(lambda answers=answers: len(answers()) == 2 * len(QUESTIONS))
        node.destroy_node()
        replays.append(answers())
    assert replays[0] == replays[1]
    assert len(set(replays[0])) == 2 * len(QUESTIONS)


def _content(answer) -> tuple:
    stamps = tuple(map(to_nanoseconds, answer.camera_stamps))
    kept = tuple(answer.tokens_kept)
    return stamps, answer.question, answer.answer, kept, answer.mean_log_probability
