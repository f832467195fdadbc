import time

from p2d_node.latency import LATENCY_TREE, LatencyWindow, percentile_field, StageClock
import pytest
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


def test_percentiles_are_of_the_latest_sweeps_only():
    window = LatencyWindow(num_sweeps=4)
    assert window.percentiles == {}
    for total_ms in (9000.0, 10.0, 20.0, 30.0, 40.0):
        window.add({'total_ms': total_ms, 'queue_ms': 1.0})
    assert len(window) == 4
    assert window.percentiles == {
        'total_p50_ms': 25.0,
        'total_p95_ms': pytest.approx(38.5),
        'queue_p50_ms': 1.0,
        'queue_p95_ms': 1.0,
    }


def test_the_message_has_a_field_for_every_percentile():
    messages = pytest.importorskip('p2d_msgs.msg', reason='ros2_ws is not built or not sourced')
    fields = list(messages.StageTiming.get_fields_and_field_types())
    first, after = fields.index('header') + 1, fields.index('num_generated_tokens')
    assert fields[fields.index('window_sweeps') + 1 :] == [
        percentile_field(name, suffix) for name in fields[first:after] for suffix in ('p50', 'p95')
    ]
    assert {name for _, name, _ in LATENCY_TREE} <= set(fields[first:after])
