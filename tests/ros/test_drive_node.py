"""Answers, times and pictures of a drive node that gets sweeps."""

from concurrent.futures import ThreadPoolExecutor
import time

from camera_rig import CameraRig, wait_until
from drive_client import Health, KEPT_AT_TENTH, next_answer, set_parameter
from p2d_node.cli.table import to_dict
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros.conversions import to_nanoseconds
import pytest
from std_msgs.msg import String
import torch


def test_a_sweep_of_six_cameras_is_answered_with_stamps_counts_and_times(
    drive, node, rig, watcher
):
    texts = []
    node.create_subscription(String, '/p2d/answer_text', lambda m: texts.append(m.data), 10)
    drive()
    wait_until(lambda: rig.heard)
    answer = next_answer(watcher, rig)
    assert answer.header.frame_id == 'CAM_FRONT_optical'
    assert answer.question == 'What should the ego vehicle do next?'
    assert answer.answer
    assert answer.model == 'tiny (untrained)'
    assert answer.encoder == 'torch float32 cpu'
    assert tuple(answer.cameras) == NUSCENES_CAMERAS
    assert len({to_nanoseconds(stamp) for stamp in answer.camera_stamps}) == 6
    assert list(answer.tokens_total) == [81] * 6
    assert list(answer.tokens_kept) == [KEPT_AT_TENTH] * 6
    assert answer.num_generated_tokens == 4
    assert answer.cut == 'length'
    assert answer.mean_log_probability < 0
    timing = wait_until(lambda: watcher.timings)[0]
    assert timing.header == answer.header
    stages = ('decode_ms', 'preprocess_ms', 'encode_ms', 'select_ms', 'prefill_ms', 'generate_ms')
    assert all(getattr(timing, stage) > 0 for stage in stages)
    assert timing.sync_wait_ms > 0
    assert timing.total_ms > timing.ttft_ms
    assert timing.age_at_publish_ms > 1e9  # the stamps are years old, and that is said
    # CAM_FRONT_LEFT is exposed 7.6 ms before the reference camera.
    assert timing.end_to_end_ms - timing.age_at_publish_ms == pytest.approx(7.6, abs=0.001)
    (text,) = wait_until(lambda: texts)
    assert text.startswith('[untrained model, random words] What should')
    image = wait_until(lambda: watcher.picture)
    assert (image.encoding, image.width, image.step) == ('bgr8', 1440, 4320)
    assert len(set(image.data)) > 50


@pytest.mark.attack(
    'weights below the normal numbers (1e-38), which take a processor a hundred times as long',
    'they count as zero in the threads that compute sweeps',
)
def test_numbers_below_the_normal_ones_are_zero_where_sweeps_are_computed(drive):
    drive_node = drive(autostart=False)
    for thread in (drive_node._worker_thread, drive_node._look_ahead_thread):
        assert bits_of_denormal(thread) == 0
    with ThreadPoolExecutor(1) as other:
        assert bits_of_denormal(other) != 0


def bits_of_denormal(thread: ThreadPoolExecutor) -> int:
    return thread.submit(lambda: (torch.tensor([3e-39]) * 2).view(torch.int32).item()).result()


def test_the_same_scene_again_needs_fewer_decoder_passes_and_that_is_seen(
    drive, node, rig, watcher
):
    health = Health(node)
    drive(max_new_tokens=12)
    wait_until(lambda: rig.heard)
    pictures = {}

    def same_picture(name, message):
        message.data = pictures.setdefault(name, message.data)
        return message

    first, second = (next_answer(watcher, rig, change=same_picture) for _ in range(2))
    assert first.answer == second.answer
    assert (first.num_generated_tokens, first.num_decoder_passes) == (12, 12)
    assert first.num_drafted_tokens == 0
    assert second.num_generated_tokens == 12
    assert second.num_decoder_passes < 6
    assert 0 < second.num_accepted_tokens <= second.num_drafted_tokens
    timing = wait_until(lambda: watcher.timings if len(watcher.timings) == 2 else None)[1]
    assert timing.num_generated_tokens == 12
    for name in ('num_decoder_passes', 'num_drafted_tokens', 'num_accepted_tokens'):
        assert getattr(timing, name) == getattr(second, name)
        assert getattr(second.timing, name) == 0
    passes = first.num_decoder_passes + second.num_decoder_passes
    wait_until(lambda: health.value('pipeline', 'tokens per decoder pass') == f'{24 / passes:.2f}')
    assert health.value('pipeline', 'drafted tokens accepted') is not None

    assert set_parameter(node, 'drafts', 'none').successful
    third = next_answer(watcher, rig, change=same_picture)
    assert (third.answer, third.num_decoder_passes) == (second.answer, 12)
    assert not set_parameter(node, 'drafts', 'medusa').successful


def test_the_times_of_a_sweep_come_with_percentiles_over_the_latest_sweeps(
    drive, node, rig, watcher
):
    drive()
    wait_until(lambda: rig.heard)
    answers = [next_answer(watcher, rig) for _ in range(3)]
    timings = wait_until(lambda: watcher.timings if len(watcher.timings) == 3 else None)
    assert [timing.window_sweeps for timing in timings] == [1, 2, 3]
    assert timings[0].total_p50_ms == timings[0].total_p95_ms == timings[0].total_ms
    totals = sorted(timing.total_ms for timing in timings)
    assert timings[-1].total_p50_ms == totals[1]
    assert totals[1] < timings[-1].total_p95_ms <= totals[2]
    assert [answer.timing.window_sweeps for answer in answers] == [0, 0, 0]
    assert 'total_p50_ms' in to_dict(timings[0])
    assert 'total_p50_ms' not in to_dict(answers[0].timing)


def test_the_node_runs_on_an_engine_and_says_which_one_and_why(
    drive, node, rig, watcher, built_engines
):
    health = Health(node)
    drive(encoder__backend='auto', encoder__engine_dir=str(built_engines))
    wait_until(lambda: rig.heard)
    answer = next_answer(watcher, rig)
    assert answer.encoder.startswith('onnxruntime ')
    assert list(answer.tokens_kept) == [KEPT_AT_TENTH] * 6
    wait_until(lambda: health.value('pipeline', 'encoder') == answer.encoder)
    reason = health.value('pipeline', 'encoder tensorrt_rtx not used')
    assert 'compute capability' in reason
    assert 'p2d build-engine --backend tensorrt_rtx' in reason


@pytest.mark.faults(
    'Publishers are best-effort',
    'the subscription follows',
)
def test_raw_best_effort_cameras_are_heard_as_well_as_reliable_ones(drive, node, watcher):
    drive(**{f'cameras.{name}.transport': 'raw' for name in NUSCENES_CAMERAS})
    rig = CameraRig(node, raw=True, reliable=False)
    wait_until(lambda: rig.heard)
    assert next_answer(watcher, rig).answer


def test_answers_are_streamed_where_that_is_asked_for(drive, node, rig, watcher):
    partial = []
    node.create_subscription(String, '/p2d/answer_partial', lambda m: partial.append(m.data), 50)
    drive()
    wait_until(lambda: rig.heard)
    next_answer(watcher, rig)
    assert not partial
    assert set_parameter(node, 'stream_partial_answers', True).successful
    answer = next_answer(watcher, rig)
    wait_until(lambda: len(partial) >= answer.num_generated_tokens - 1)
    line = f'[untrained model, random words] {answer.question} {answer.answer}'
    assert all(line.startswith(text) for text in partial)


@pytest.mark.faults(
    'A bag begins again: time jumps back',
    'new sweeps are answered at once',
)
def test_time_that_jumps_back_starts_a_new_run_of_sweeps(drive, node, rig, watcher):
    health = Health(node)
    drive()
    wait_until(lambda: rig.heard)
    first = next_answer(watcher, rig)
    for _ in range(3):
        last = next_answer(watcher, rig)
    assert to_nanoseconds(last.header.stamp) > to_nanoseconds(first.header.stamp)
    time.sleep(1.5)  # as between two loops of a bag: the first sweep is forgotten
    before = len(watcher.answers)
    rig.num_sweeps = 0
    rig.publish_sweep()
    wait_until(lambda: len(watcher.answers) == before + 1)
    assert watcher.answers[-1].header.stamp == first.header.stamp
    wait_until(lambda: health.value('synchroniser', 'reset') == '1')


@pytest.mark.faults(
    'Sweeps come faster than answers',
    'the latest one is answered, the others are counted as superseded',
)
def test_of_a_burst_only_the_latest_sweep_waits(drive, node, rig, watcher):
    drive_node = drive(max_new_tokens=400, questions=['Is there a car?', 'Is there a bus?'])
    wait_until(lambda: rig.heard)
    for _ in range(8):
        last_ns = rig.publish_sweep()
        time.sleep(0.02)
    wait_until(
        lambda: [a for a in watcher.answers if to_nanoseconds(a.header.stamp) == last_ns], 60.0
    )
    state, counters = drive_node.session.worker.state, drive_node.session.synchronizer.counters
    wait_until(lambda: state.answered + state.superseded == counters.complete)
    assert state.superseded >= 1
    stamps = [to_nanoseconds(a.header.stamp) for a in watcher.answers]
    assert stamps == sorted(stamps)
