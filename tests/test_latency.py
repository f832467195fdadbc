import time

from p2d_node.latency import StageClock
import torch


def test_a_stage_inside_another_is_not_counted_twice():
    clock = StageClock(torch.device('cpu'))
    with clock.stage('outer'):
        time.sleep(0.02)
        with clock.stage('inner'):
            time.sleep(0.05)
            with clock.stage('innermost'):
                time.sleep(0.03)
        with clock.stage('inner'):
            time.sleep(0.01)
    total_ms = clock.elapsed_ms()
    durations = clock.durations_ms
    assert durations['innermost'] >= 30
    assert durations['inner'] >= 60
    assert durations['outer'] >= 20
    assert sum(durations.values()) <= total_ms


def test_a_later_stage_owes_nothing_to_an_earlier_one():
    clock = StageClock(torch.device('cpu'))
    with clock.stage('first'):
        time.sleep(0.03)
    with clock.stage('second'):
        time.sleep(0.01)
    assert clock.durations_ms['second'] >= 10
    assert sum(clock.durations_ms.values()) <= clock.elapsed_ms()
