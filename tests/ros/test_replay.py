"""The replay where the context goes between a look at it and the next call."""

from __future__ import annotations

from camera_rig import wait_until
from p2d_node.bags.reading import BagReader
from p2d_node.bags.writing import write_bag
from p2d_node.errors import ConfigError
from p2d_node.ros import latched, replay
from p2d_node.ros.latched import LatchedDepths
from p2d_node.ros.replay import Replayer, ReplayOptions
from p2d_sim.generated import generate_images
import pytest
import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Writer
from rosbags.typesys import get_typestore, Stores
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

STORE = get_typestore(Stores.ROS2_HUMBLE)
HOSTILE_TOPIC = '/a \x1b]0;topic\x07'
LATCHED = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.RELIABLE,
    QosDurability.TRANSIENT_LOCAL,
    QosTime(0, 0),
    QosTime(0, 0),
    QosLiveliness.AUTOMATIC,
    QosTime(0, 0),
    False,
)


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


@pytest.fixture
def robot_bag(tmp_path):
    """A recording in simulation: /clock, a latched text, and a topic with a name ROS refuses."""
    clock = STORE.types['rosgraph_msgs/msg/Clock'](
        clock=STORE.types['builtin_interfaces/msg/Time'](sec=5, nanosec=0)
    )
    text = STORE.types['std_msgs/msg/String']('<robot/>')
    with Writer(tmp_path / 'bag', version=8) as writer:
        for topic, message, profiles in (
            ('/clock', clock, []),
            ('/robot_description', text, [LATCHED]),
            (HOSTILE_TOPIC, text, []),
        ):
            connection = writer.add_connection(
                topic, message.__msgtype__, typestore=STORE, offered_qos_profiles=profiles
            )
            for number in range(3):
                data = STORE.serialize_cdr(message, message.__msgtype__)
                writer.write(connection, 10**18 + number * 10_000_000, data)
    with BagReader(tmp_path / 'bag') as reader:
        yield reader


@pytest.mark.parametrize('with_clock', [True, False])
def test_there_is_one_clock_and_late_readers_get_what_was_latched(
    node, make_context, robot_bag, with_clock, capfd
) -> None:
    times, texts = [], []
    node.create_subscription(Clock, '/clock', lambda m: times.append(m.clock.sec), 100)
    player = rclpy.create_node('p2d_replay', context=make_context())
    replayer = Replayer(player, robot_bag, ReplayOptions(clock=with_clock))
    wait_until(lambda: player.count_subscribers('/clock'))
    replayer.play(lambda: False)
    qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(String, '/robot_description', lambda m: texts.append(m.data), qos)
    wait_until(lambda: times and texts)
    assert set(times) == {10**9} if with_clock else {5}
    assert '<robot/>' in texts
    log = capfd.readouterr().err
    assert '/a  ]0;topic : ' in log
    assert '\x1b]' not in log
    player.destroy_node()


def test_depths_of_latched_topics_fit_into_the_memory_of_all(monkeypatch) -> None:
    monkeypatch.setattr(latched, 'MAX_LATCHED_BYTES', 1000)
    depths = LatchedDepths({'/a': 10, '/b': 9_999, '/c': 10})
    assert (depths.of('/b'), depths.of('/camera')) == (1000, 0)
    assert not depths.add('/camera', 10**9)
    assert not depths.add('/a', 50)
    assert depths.add('/b', 4)
    assert (depths.of('/a'), depths.of('/b')) == (10, 125)
    assert not depths.add('/b', 4)
    assert depths.add('/c', 1)
    assert depths.of('/c') == 0
    assert not depths.add('/c', 1000)


@pytest.mark.attack(
    'a bag of 5 MB with a latched topic of hundreds of messages of 10 MB, which a replay keeps',
    'latched messages take up to 256 MiB of all topics; late subscribers get fewer, and that is '
    'said',
)
def test_latched_messages_have_a_memory(node, make_context, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(latched, 'MAX_LATCHED_BYTES', 350)
    with Writer(tmp_path / 'bag', version=8) as writer:
        connection = writer.add_connection(
            '/map', 'std_msgs/msg/String', typestore=STORE, offered_qos_profiles=[LATCHED]
        )
        for number in range(20):
            text = STORE.types['std_msgs/msg/String'](f'{number:0100}')
            writer.write(connection, number, STORE.serialize_cdr(text, text.__msgtype__))
    player = rclpy.create_node('p2d_replay', context=make_context())
    with BagReader(tmp_path / 'bag') as reader:
        Replayer(player, reader, ReplayOptions()).play(lambda: False)
    texts = []
    qos = QoSProfile(depth=20, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(String, '/map', lambda m: texts.append(int(m.data)), qos)
    wait_until(lambda: 19 in texts)
    assert texts == [17, 18, 19]
    assert '/map: late subscribers get its last 3 messages, as they' in capfd.readouterr().err
    player.destroy_node()


@pytest.mark.attack(
    'a bag of 4 MB with a message of 250 MB on each of 12 topics: DDS keeps a buffer for each',
    'refused above 64 MiB per message, and 512 MiB as the sum of the largest of each topic',
)
@pytest.mark.parametrize(
    ('limit', 'topics', 'reason'),
    [
        ('MAX_MESSAGE_BYTES', ['/t0'], "a message of '/t0': got 108 bytes, allowed: up to 100"),
        ('MAX_TOPICS_BYTES', ['/t0', '/t1'], 'all topics: got 216 bytes, allowed: up to 200'),
    ],
)
def test_messages_and_topics_have_a_largest_size(
    node, tmp_path, monkeypatch, limit, topics, reason
):
    monkeypatch.setattr(replay, limit, 100 * len(topics))
    write_texts(tmp_path / 'bag', dict.fromkeys(topics, 'x' * 99))
    with BagReader(tmp_path / 'bag') as reader, pytest.raises(ConfigError, match=reason):
        Replayer(node, reader, ReplayOptions()).play(lambda: False)


def test_a_topic_whose_bytes_are_no_message_is_skipped(node, tmp_path, capfd):
    with Writer(tmp_path / 'bag', version=8) as writer:
        odd = writer.add_connection(
            '/odd', 'geometry_msgs/msg/PoseWithCovariance', typestore=STORE
        )
        for number in range(2):
            writer.write(odd, number, bytes(4000))
    with BagReader(tmp_path / 'bag') as reader:
        Replayer(node, reader, ReplayOptions()).play(lambda: False)
    assert capfd.readouterr().err.count('/odd: ') == 1


def write_texts(bag, texts):
    """Write a bag with a text per topic."""
    with Writer(bag, version=8) as writer:
        for topic, content in texts.items():
            connection = writer.add_connection(topic, 'std_msgs/msg/String', typestore=STORE)
            text = STORE.types['std_msgs/msg/String'](content)
            writer.write(connection, 0, STORE.serialize_cdr(text, text.__msgtype__))
