import time

from p2d_node.latency import StageClock
import torch


def test_a_stage_that_runs_twice_adds_up():
    clock = StageClock(torch.device('cpu'))
    with clock.stage('prefill'):
        time.sleep(0.02)
    with clock.stage('select'):
        time.sleep(0.05)
    with clock.stage('prefill'):
        time.sleep(0.03)
    clock.mark('end')
    durations = clock.durations_ms
    assert durations['prefill'] >= 50
    assert durations['select'] >= 50
    assert durations['prefill'] + durations['select'] <= durations['end']


def test_the_first_mark_of_a_name_counts():
    clock = StageClock(torch.device('cpu'))
    clock.mark('ttft')
    first_ms = clock.durations_ms['ttft']
    time.sleep(0.01)
    clock.mark('ttft')
    assert clock.durations_ms['ttft'] == first_ms < 10


def test_a_later_stage_owes_nothing_to_an_earlier_one():
    clock = StageClock(torch.device('cpu'))
    with clock.stage('first'):
        time.sleep(0.03)
    with clock.stage('second'):
        time.sleep(0.01)
    assert clock.durations_ms['second'] >= 10
    total_ms = sum(clock.durations_ms.values())
    clock.mark('end')
    assert total_ms <= clock.durations_ms['end']
