"""What the rclpy of an older distribution lacks costs nothing but what needs it."""

import os

from camera_rig import wait_until
from drive_client import call
from p2d_msgs.srv import Ask
from p2d_node.cli.node_process import isolate
from p2d_node.ros import camera_subscription
from p2d_node.ros.conversions import to_nanoseconds
from p2d_node.ros.requests import FREE_PLACES_EVERY_S, Requests
import pytest
from rclpy.node import Node


def test_humble_whose_callbacks_get_the_message_only(drive, rig, watcher, monkeypatch):
    monkeypatch.setattr(camera_subscription, 'HAS_MESSAGE_INFO', False)
    received = []
    lag_ns = camera_subscription._lag_ns
    monkeypatch.setattr(
        camera_subscription, '_lag_ns', lambda info: received.append(info) or lag_ns(info)
    )
    drive()
    wait_until(lambda: rig.heard)
    stamp_ns = rig.publish_sweep()
    (answer,) = wait_until(lambda: watcher.answers)
    assert to_nanoseconds(answer.header.stamp) == stamp_ns
    assert received == [camera_subscription.NO_MESSAGE_INFO] * 6


@pytest.mark.parametrize(
    ('distribution', 'variable', 'value'),
    [
        ('humble', 'ROS_LOCALHOST_ONLY', '1'),
        ('lyrical', 'ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST'),
    ],
)
def test_the_nodes_of_a_command_stay_on_this_machine(distribution, variable, value, monkeypatch):
    monkeypatch.setenv('ROS_DISTRO', distribution)
    monkeypatch.setenv('ROS_DOMAIN_ID', '7')
    for name in ('ROS_LOCALHOST_ONLY', 'ROS_AUTOMATIC_DISCOVERY_RANGE'):
        monkeypatch.setenv(name, '')  # so that the test puts back what is set below
        monkeypatch.delenv(name)
    isolate()
    assert os.environ[variable] == value


def test_humble_which_cannot_count_the_callers_of_a_service(drive, node, monkeypatch):
    counted = []
    monkeypatch.setattr(Requests, '_free_places', lambda _: counted.append(True))
    monkeypatch.delattr(Node, 'count_clients')
    drive()
    timeout_s = FREE_PLACES_EVERY_S + 0.5
    request = Ask.Request(question='Is there a car?', timeout_s=timeout_s)
    response = call(node, Ask, '/p2d/ask', request)
    assert f'no answer within {timeout_s:g} s' in response.message
    assert not counted
