"""The sweep that waits is decoded and resized while the model works on another."""

from concurrent.futures import ThreadPoolExecutor
import threading
import time

from camera_rig import wait_until
from p2d_node.ros import look_ahead
from p2d_node.ros.conversions import to_nanoseconds
from p2d_node.ros.look_ahead import LookAhead
from p2d_node.vision_frontend import PreparedFrames
import pytest
from sweeps import make_frame_set


@pytest.fixture
def thread():
    executor = ThreadPoolExecutor(max_workers=1)
    yield executor
    executor.shutdown()


def prepare(_):
    return PreparedFrames([], {})


def test_nothing_is_prepared_while_no_sweep_is_in_work(thread):
    ahead, sweep = LookAhead(prepare, thread), make_frame_set(seed=1)
    ahead.offer(sweep)
    assert ahead.begin_work(sweep) is None
    ahead.end_work()
    ahead.offer(sweep)
    assert ahead.begin_work(sweep) is None


def test_the_waiting_sweep_is_prepared_shortly_before_the_end_of_work(thread, monkeypatch):
    monkeypatch.setattr(look_ahead, 'LEAD_NS', 0)
    begun = threading.Event()

    def noted(_):
        begun.set()
        return PreparedFrames([], {'CAM_BACK': 'noted'})

    ahead, first, second = LookAhead(noted, thread), make_frame_set(), make_frame_set(seed=1)
    ahead.begin_work(first)
    time.sleep(0.3)
    ahead.end_work()
    ahead.begin_work(first)
    ahead.offer(second)
    assert not begun.wait(0.05)
    time.sleep(0.3)
    ahead.offer(second)
    assert begun.wait(5.0)
    prepared = ahead.begin_work(second)
    assert prepared is not None
    assert prepared.result(5.0).broken == {'CAM_BACK': 'noted'}


def test_a_newer_sweep_replaces_a_prepared_one(thread):
    go_on, begun = threading.Event(), []

    def blocked(sweep):
        begun.append(sweep)
        go_on.wait(10.0)
        return PreparedFrames([], {})

    ahead = LookAhead(blocked, thread)
    sweeps = [make_frame_set(seed=seed) for seed in range(4)]
    ahead.begin_work(sweeps[0])
    for sweep in sweeps[1:]:
        ahead.offer(sweep)
        ahead.offer(sweep)
        wait_until(lambda: begun)
    # The last has not begun: the thread is still busy with the first that was offered.
    assert ahead.begin_work(sweeps[3]) is None
    ahead.offer(sweeps[1])
    assert ahead.begin_work(sweeps[2]) is None
    go_on.set()
    thread.submit(int).result(5.0)
    assert begun == [sweeps[1]]


def test_what_was_prepared_is_used_for_no_other_sweep(thread):
    ahead, sweeps = LookAhead(prepare, thread), [make_frame_set(seed=seed) for seed in range(3)]
    ahead.begin_work(sweeps[0])
    ahead.offer(sweeps[1])
    thread.submit(int).result(5.0)
    assert ahead.begin_work(sweeps[2]) is None


def test_the_node_prepares_the_next_sweep_and_answers_about_the_newest(
    drive, rig, watcher, monkeypatch
):
    pipeline = drive()._pipeline
    wait_until(lambda: rig.heard)
    go_on, prepared, decoded = threading.Event(), [], []
    encode, really_prepare, decode = (
        pipeline._encoder.encode,
        pipeline.prepare,
        pipeline._frontend.decode,
    )
    monkeypatch.setattr(
        pipeline._encoder, 'encode', lambda pixels: go_on.wait(30.0) and encode(pixels)
    )

    def note_prepare(frame_set):
        prepared.append(frame_set.stamp_ns)
        return really_prepare(frame_set)

    def note_decode(frame_set):
        decoded.append(frame_set.stamp_ns)
        return decode(frame_set)

    monkeypatch.setattr(pipeline, 'prepare', note_prepare)
    monkeypatch.setattr(pipeline._frontend, 'decode', note_decode)
    first = rig.publish_sweep()
    wait_until(lambda: decoded)
    second = rig.publish_sweep()
    wait_until(lambda: second in decoded)
    third = rig.publish_sweep()
    wait_until(lambda: third in decoded)
    go_on.set()
    wait_until(lambda: len(watcher.answers) == 2)
    time.sleep(0.3)
    assert [to_nanoseconds(a.header.stamp) for a in watcher.answers] == [first, third]
    assert prepared == [second, third]
    assert decoded == [first, second, third]
