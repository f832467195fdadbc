"""Questions asked through the service and the topic."""

import time

from camera_rig import wait_until
from drive_client import call, next_answer, set_parameter
from p2d_msgs.srv import Ask
from p2d_node.ros.asked_questions import MAX_PENDING_QUESTIONS
from p2d_node.ros.conversions import to_nanoseconds
import pytest
from rclpy.qos import QoSProfile
from std_msgs.msg import String
import torch


def test_questions_asked_by_topic_and_service_are_answered_on_the_next_sweep(
    drive, node, rig, watcher
):
    drive()
    wait_until(lambda: rig.heard)
    publisher = node.create_publisher(String, '/p2d/question', 10)
    wait_until(publisher.get_subscription_count)
    publisher.publish(String(data='Is the light red?'))
    client = node.create_client(Ask, '/p2d/ask')
    assert client.wait_for_service(timeout_sec=10.0)
    future = client.call_async(Ask.Request(question='Is there a bus?', timeout_s=20.0))
    time.sleep(0.5)
    stamp_ns = rig.publish_sweep()
    response = wait_until(lambda: future.result() if future.done() else None)
    assert response.success
    assert response.message == ''
    assert response.answer.question == 'Is there a bus?'
    assert to_nanoseconds(response.answer.header.stamp) == stamp_ns
    wait_until(lambda: len(watcher.answers) == 3)
    assert {a.question for a in watcher.answers} == {
        'What should the ego vehicle do next?',
        'Is the light red?',
        'Is there a bus?',
    }


@pytest.mark.parametrize(
    ('question', 'timeout_s', 'reason'),
    [
        ('', 1.0, 'question: got an empty text'),
        ('What <image> is this?', 1.0, 'question: got a text with <image>'),
        ('car ' * 2000, 1.0, 'question: got a text of 8000 characters'),
        ('Is there a car?', -1.0, 'timeout_s: got -1'),
        ('Is there a car?', 0.3, 'no answer within 0.3 s: no frames from CAM_FRONT'),
    ],
)
def test_a_question_without_an_answer_says_why(drive, node, question, timeout_s, reason):
    drive()
    request = Ask.Request(question=question, timeout_s=timeout_s)
    response = call(node, Ask, '/p2d/ask', request)
    assert not response.success
    assert reason in response.message


@pytest.mark.faults(
    'A question cannot be asked',
    'refused with the reason',
)
def test_a_question_that_cannot_be_asked_costs_no_sweep(drive, node, rig, watcher):
    drive()
    wait_until(lambda: rig.heard)
    publisher = node.create_publisher(String, '/p2d/question', 10)
    wait_until(publisher.get_subscription_count)
    publisher.publish(String(data='What <image> is this?'))
    result = set_parameter(node, 'questions', ['Is there a car?', 'What <image> is this?'])
    assert not result.successful
    assert 'got a text with <image>' in result.reason
    assert next_answer(watcher, rig).answer
    assert len(watcher.answers) == 1


@pytest.mark.faults(
    'Memory runs out',
    'InferenceError with advice; memory is freed; the next sweep is answered',
)
def test_a_question_that_a_sweep_fails_with_is_given_up_with_the_reason(
    drive, node, rig, watcher, monkeypatch
):
    drive_node = drive()
    wait_until(lambda: rig.heard)
    client = node.create_client(Ask, '/p2d/ask')
    assert client.wait_for_service(timeout_sec=10.0)
    with monkeypatch.context() as patch:
        patch.setattr(drive_node._pipeline._encoder, 'encode', no_memory)
        future = client.call_async(Ask.Request(question='Is there a bus?', timeout_s=20.0))
        wait_until(lambda: drive_node.session.worker.questions)
        rig.publish_sweep()
        response = wait_until(lambda: future.result() if future.done() else None)
    assert not response.success
    assert 'OutOfMemoryError: no memory' in response.message
    assert next_answer(watcher, rig).answer
    assert len(watcher.answers) == 1


def no_memory(frames):
    raise torch.OutOfMemoryError('no memory')


def test_of_many_callers_those_who_cannot_wait_are_told_at_once(drive, node):
    drive()
    client = node.create_client(Ask, '/p2d/ask')
    assert client.wait_for_service(timeout_sec=10.0)
    request = Ask.Request(question='Is there a bus?', timeout_s=6.0)
    futures = []
    for _ in range(MAX_PENDING_QUESTIONS + 4):
        futures.append(client.call_async(request))
        time.sleep(0.05)  # DDS keeps ten requests of a client that has not been read
    wait_until(lambda: sum(future.done() for future in futures) == 4, timeout_s=5.0)
    replies = {future.result().message for future in futures if future.done()}
    assert replies == {'too many questions wait for a sweep; ask again later'}
    wait_until(lambda: all(future.done() for future in futures))


def test_every_one_of_many_callers_at_once_gets_a_reply(drive, node):
    drive()
    # With the default of 10 the client itself would lose requests and replies.
    client = node.create_client(Ask, '/p2d/ask', qos_profile=QoSProfile(depth=256))
    assert client.wait_for_service(timeout_sec=10.0)
    time.sleep(0.3)
    request = Ask.Request(question='Is there a bus?', timeout_s=1.0)
    futures = [client.call_async(request) for _ in range(3 * MAX_PENDING_QUESTIONS)]
    wait_until(lambda: all(future.done() for future in futures), timeout_s=30.0)
