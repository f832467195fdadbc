"""The replay where the context goes between a look at it and the next call."""

from __future__ import annotations

from p2d_node.bags.reading import BagReader
from p2d_node.bags.writing import write_bag
from p2d_node.ros.replay import Replayer, ReplayOptions
from p2d_sim.generated import generate_images
import pytest
import rclpy


@pytest.fixture
def bag(tmp_path):
    write_bag(generate_images(2, height=90, width=160), tmp_path / 'bag')
    with BagReader(tmp_path / 'bag') as reader:
        yield reader


@pytest.mark.parametrize('looks', [0, 3])
def test_a_shutdown_ends_waiting_and_playing(make_context, bag, looks) -> None:
    for act in (Replayer.wait_for_subscribers, Replayer.play):
        context = make_context()
        node = rclpy.create_node('p2d_replay', context=context)
        replayer = Replayer(node, bag, ReplayOptions(clock=True, loop=True))
        left = looks

        def must_stop(context=context) -> bool:
            nonlocal left
            left -= 1
            if left < 0:
                context.try_shutdown()
            return False

        assert not act(replayer, must_stop)
        assert not context.ok()


def test_other_faults_of_a_publisher_are_not_taken_for_a_shutdown(make_context, bag) -> None:
    node = rclpy.create_node('p2d_replay', context=make_context())
    replayer = Replayer(node, bag, ReplayOptions())
    for publisher in list(node.publishers):
        publisher.destroy()
    with pytest.raises(RuntimeError):
        replayer.play(lambda: False)
