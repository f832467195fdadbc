"""Clips: which sweeps belong together, what of them is computed, and what the answers rest on."""

from dataclasses import replace
import gc
import weakref

from memory import high_water_bytes
import numpy as np
from p2d_node import vision_frontend
from p2d_node.clip_tokens import EncodedSweeps
from p2d_node.clips import ClipAssembler, ClipSettings
from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import CameraFrame, CompressedImage, FrameSet, NUSCENES_CAMERAS
from p2d_node.ros.overlay import draw_kept_tokens
from p2d_node.units import NS_PER_MS
import pytest
from sweeps import jpeg, make_frame_set, picture, STAMP_NS
from tiny_qwen3 import write_byte_qwen3_vl
import torch

NUM_FRAMES = 4
QUESTIONS = ('What should the ego vehicle do next?', 'Is there a car?')
SETTINGS = ClipSettings(NUM_FRAMES, 100 * NS_PER_MS)


def empty_sweep(stamp_ms: float, epoch: int = 0) -> FrameSet:
    return FrameSet(stamp_ns=round(stamp_ms * NS_PER_MS), frames={}, epoch=epoch)


def lengths(stamps_ms, settings=SETTINGS) -> list[int]:
    clips = ClipAssembler(settings)
    return [len(clips.add(empty_sweep(stamp)).earlier) + 1 for stamp in stamps_ms]


def test_a_clip_is_the_sweep_and_those_before_it_at_the_interval():
    clips = ClipAssembler(SETTINGS)
    newest = [clips.add(empty_sweep(50 * number)) for number in range(8)][-1]
    assert [s.stamp_ns // NS_PER_MS for s in newest.earlier] == [50, 150, 250]
    assert all(not sweep.earlier for sweep in newest.earlier)


def test_without_clips_a_sweep_stays_alone():
    assert lengths([0, 100, 200], ClipSettings()) == [1, 1, 1]


@pytest.mark.parametrize('rate_hz', [10.0, 11.0, 12.0, 15.0, 17.0, 20.0, 29.97, 36.0])
def test_cameras_of_any_rate_above_the_interval_have_full_clips(rate_hz):
    rng = np.random.default_rng(0)
    stamps_ms = 1000 / rate_hz * np.arange(100) + rng.uniform(-3, 3, 100)
    assert set(lengths(stamps_ms)[round(0.5 * rate_hz) :]) == {NUM_FRAMES}


def test_cameras_that_are_slower_than_the_interval_have_no_clips():
    assert set(lengths(500 * np.arange(10))) == {1}


def test_a_gap_begins_a_new_clip():
    assert lengths([0, 100, 200, 300, 500, 600, 700, 800]) == [1, 2, 3, 4, 1, 2, 3, 4]


def test_a_jump_of_time_begins_a_new_clip():
    clips = ClipAssembler(SETTINGS)
    for stamp_ms in (0, 100, 200):
        clips.add(empty_sweep(stamp_ms))
    assert clips.add(empty_sweep(100, epoch=1)).earlier == ()
    assert len(clips.add(empty_sweep(200, epoch=1)).earlier) == 1


def test_a_sweep_that_comes_after_a_newer_one_takes_its_place():
    clips = ClipAssembler(SETTINGS)
    for stamp_ms in (0, 100, 300):
        clips.add(empty_sweep(stamp_ms))
    late = clips.add(empty_sweep(200))
    assert [s.stamp_ns // NS_PER_MS for s in late.earlier] == [0, 100]
    assert len(clips.add(empty_sweep(400)).earlier) == 3


def test_few_sweeps_are_kept_however_fast_they_come():
    clips = ClipAssembler(SETTINGS)
    for number in range(1000):
        clips.add(empty_sweep(0.1 * number))
    assert len(clips._sweeps) == SETTINGS.max_sweeps == 4 * SETTINGS.num_frames


@pytest.mark.parametrize(
    ('rate_hz', 'num_frames', 'interval_ms'),
    [(12, 16, 500), (36, 16, 200), (30, 4, 1000), (12, 4, 10000), (100, 16, 1000)],
)
def test_long_clips_of_fast_cameras_become_full(rate_hz, num_frames, interval_ms):
    settings = ClipSettings(num_frames, interval_ms * NS_PER_MS)
    reach = num_frames * interval_ms * rate_hz // 1000
    found = lengths(1000 / rate_hz * np.arange(reach + 100), settings)
    assert set(found[reach:]) == {num_frames}


def test_the_tokens_of_a_long_clip_of_fast_cameras_are_all_held():
    settings = ClipSettings(16, 500 * NS_PER_MS)
    clips, encoded = ClipAssembler(settings), EncodedSweeps(settings)
    for number in range(300):
        sweep = clips.add(empty_sweep(number * 1000 / 12))
        assert all(encoded.find(earlier) is not None for earlier in sweep.earlier)
        encoded.add(sweep, sweep, torch.zeros(0))
    assert len(encoded) == settings.max_sweeps == 64


@pytest.mark.attack(
    'With clips a peer sends many sweeps, lets time jump back, and sends broken images',
    'the tokens of sweeps do not keep their messages, and go when nothing else holds these',
)
def test_tokens_do_not_keep_the_frames_of_a_sweep():
    clips, encoded = ClipAssembler(SETTINGS), EncodedSweeps(SETTINGS)
    frames = []
    for number in range(8):
        sweep = clips.add(sweep_at(number))
        encoded.add(sweep, sweep, torch.zeros(1))
        frames += map(weakref.ref, [sweep.frames])
    clips.add(sweep_at(0, epoch=1))
    del sweep
    assert [ref() for ref in frames] == [None] * 8
    newest = clips.add(sweep_at(1, epoch=1))
    encoded.add(newest, newest, torch.zeros(1))
    assert len(encoded) == 1


@pytest.fixture(scope='module')
def config(tiny_checkpoint):
    return DriveConfig(
        model=str(tiny_checkpoint),
        device='cpu',
        max_new_tokens=6,
        frames_per_camera=NUM_FRAMES,
        drafts='none',
    )


@pytest.fixture(scope='module')
def pipeline(config):
    pipeline = DrivingPipeline.from_config(config)
    yield pipeline
    pipeline.close()


@pytest.fixture(autouse=True)
def _reset(pipeline, config):
    pipeline.reconfigure(config)
    pipeline.release()


@pytest.fixture
def encoded_batches(pipeline, monkeypatch) -> list[int]:
    """The number of pictures of each call of the vision encoder."""
    batches: list[int] = []
    encode = pipeline._encoder.encode
    monkeypatch.setattr(
        pipeline._encoder, 'encode', lambda pixels: batches.append(len(pixels)) or encode(pixels)
    )
    return batches


def sweep_at(number: int, cameras=NUSCENES_CAMERAS, epoch: int = 0) -> FrameSet:
    """Sweep number `number` of a drive, 100 ms after the one before."""
    sweep = make_frame_set(cameras, seed=number % 7)
    shift_ns = number * 100 * NS_PER_MS
    frames = {n: replace(f, stamp_ns=f.stamp_ns + shift_ns) for n, f in sweep.frames.items()}
    return replace(sweep, frames=frames, stamp_ns=STAMP_NS + shift_ns, epoch=epoch)


def clip_at(number: int, **changes) -> FrameSet:
    earlier = tuple(sweep_at(number - back, **changes) for back in range(NUM_FRAMES - 1, 0, -1))
    return replace(sweep_at(number, **changes), earlier=earlier)


def same(ours, other) -> bool:
    kept = all(np.array_equal(ours.keep_indices[n], k) for n, k in other.keep_indices.items())
    return kept and (ours.answer, ours.mean_log_probability) == (
        other.answer,
        other.mean_log_probability,
    )


def test_every_frame_is_encoded_once_and_the_answers_are_those_of_encoding_all_anew(
    pipeline, config, encoded_batches
):
    clips = ClipAssembler(pipeline.clip)
    drive = [clips.add(sweep_at(number)) for number in range(6)]
    answers = [pipeline.answer(sweep, QUESTIONS) for sweep in drive]
    assert encoded_batches == [6] * 6

    anew = DrivingPipeline.from_config(config)
    try:
        for sweep, ours in zip(drive, answers, strict=True):
            anew.release()
            expected = anew.answer(sweep, QUESTIONS)
            assert all(map(same, ours, expected))
    finally:
        anew.close()
    newest = answers[-1][0]
    assert newest.clip_stamps_ns['CAM_FRONT'] == tuple(
        STAMP_NS + number * 100 * NS_PER_MS for number in (2, 3, 4, 5)
    )
    assert newest.camera_stamps_ns['CAM_FRONT'] == STAMP_NS + 500 * NS_PER_MS
    assert set(newest.tokens_total.values()) == {NUM_FRAMES * 81}
    assert set(newest.tokens_kept.values()) == {int(NUM_FRAMES * 81 * 0.1)}
    assert sum(map(len, newest.kept_per_frame('CAM_BACK'))) == int(NUM_FRAMES * 81 * 0.1)


def test_the_first_half_and_the_second_half_give_the_same_answer(pipeline):
    clip = clip_at(8)
    (expected,) = pipeline.answer(clip, QUESTIONS[:1])
    tokens = pipeline.encode(clip)
    assert tokens.shape[0] == NUM_FRAMES * len(NUSCENES_CAMERAS)
    (ours,) = pipeline.answer_tokens(clip, tokens, QUESTIONS[:1])
    assert same(ours, expected)


def test_sweeps_that_were_skipped_are_encoded_when_a_clip_needs_them(pipeline, encoded_batches):
    clips = ClipAssembler(pipeline.clip)
    drive = [clips.add(sweep_at(number)) for number in range(9)]
    for number in (3, 5, 8):
        pipeline.answer(drive[number], QUESTIONS[:1])
    assert len(encoded_batches) == 9  # 0 to 3, 4 and 5, 6 to 8: each once


@pytest.mark.parametrize('scope', ['clip', 'frame'])
@pytest.mark.parametrize('prune_layer', [0, 1])
def test_a_clip_whose_tokens_are_all_kept_is_answered_without_selection(
    tiny_checkpoint, config, scope, prune_layer
):
    whole = replace(
        config,
        retention_ratio=dict.fromkeys(NUSCENES_CAMERAS, 1.0),
        selection_scope=scope,
        prune_layer=prune_layer,
    )
    pipeline = DrivingPipeline.from_config(whole)
    try:
        answer, _ = pipeline.answer(clip_at(8), QUESTIONS)
        indices = torch.arange(NUM_FRAMES * 81)
        tokens = pipeline.encode(clip_at(8))
        expected, _ = pipeline.answer_tokens(
            clip_at(8), tokens, QUESTIONS, keep_indices=[indices] * len(NUSCENES_CAMERAS)
        )
        assert same(answer, expected)
        assert answer.tokens_kept == answer.tokens_total
    finally:
        pipeline.close()


@pytest.mark.parametrize('selector', ['tfps', 'random', 'grid', 'dart'])
def test_within_each_frame_a_selector_keeps_an_equal_share(pipeline, config, selector):
    pipeline.reconfigure(replace(config, selector=selector, selection_scope='frame'))
    (answer,) = pipeline.answer(clip_at(8), QUESTIONS[:1])
    counts = [len(kept) for kept in answer.kept_per_frame('CAM_FRONT')]
    assert counts == [8, 8, 8, 8]
    pipeline.reconfigure(replace(config, selector=selector))
    (answer,) = pipeline.answer(clip_at(8), QUESTIONS[:1])
    assert answer.tokens_kept['CAM_FRONT'] == sum(counts)


def test_cameras_that_the_configuration_does_not_name_have_neighbours_too(pipeline, config):
    pipeline.reconfigure(replace(config, selector='tfps_motion'))
    (answer,) = pipeline.answer(clip_at(8, cameras=('left', 'right')), QUESTIONS[:1])
    assert list(answer.tokens_kept) == ['left', 'right']


@pytest.mark.parametrize('scope', ['clip', 'frame'])
def test_divprune_shares_all_tokens_out_over_cameras_and_frames(pipeline, config, scope):
    pipeline.reconfigure(replace(config, selector='divprune', selection_scope=scope))
    (answer,) = pipeline.answer(clip_at(8), QUESTIONS[:1])
    assert sum(answer.tokens_kept.values()) == 6 * int(NUM_FRAMES * 81 * 0.1)


def test_a_lost_camera_has_fewer_frames_and_the_others_keep_its_tokens(pipeline, config):
    pipeline.reconfigure(replace(config, missing_camera_policy='drop_view'))
    others = tuple(name for name in NUSCENES_CAMERAS if name != 'CAM_BACK')
    clip = replace(clip_at(8), earlier=(sweep_at(5), sweep_at(6, others), sweep_at(7)))
    (answer,) = pipeline.answer(clip, QUESTIONS[:1])
    assert len(answer.clip_stamps_ns['CAM_BACK']) == 3
    assert answer.tokens_total['CAM_BACK'] == 3 * 81
    assert list(answer.tokens_kept) == list(NUSCENES_CAMERAS)

    clip = replace(clip_at(8, cameras=others), earlier=clip_at(8).earlier)
    (answer,) = pipeline.answer(clip, QUESTIONS[:1])
    assert 'CAM_BACK' not in answer.clip_stamps_ns
    assert sum(answer.tokens_kept.values()) == 6 * int(NUM_FRAMES * 81 * 0.1)


def test_a_broken_earlier_frame_shortens_the_clip(pipeline, config):
    broken = sweep_at(6)
    frame = CameraFrame('CAM_BACK', 1, CompressedImage(format='jpeg', data=b'\xff\xd8\xff'))
    broken = replace(broken, frames={**broken.frames, 'CAM_BACK': frame})
    clip = replace(clip_at(8), earlier=(sweep_at(5), broken, sweep_at(7)))
    (answer,) = pipeline.answer(clip, QUESTIONS[:1])
    assert {len(stamps) for stamps in answer.clip_stamps_ns.values()} == {2}

    pipeline.reconfigure(replace(config, missing_camera_policy='drop_view'))
    (answer,) = pipeline.answer(clip, QUESTIONS[:1])
    assert len(answer.clip_stamps_ns['CAM_BACK']) == 3
    assert len(answer.clip_stamps_ns['CAM_FRONT']) == 4


@pytest.mark.attack(
    'With clips a peer sends slow frames that are broken: each is tried for every sweep after it',
    'a broken sweep is tried once, and sweeps before it in the clip are not tried',
)
def test_a_broken_sweep_is_decoded_once(pipeline, monkeypatch):
    decode, decoded = vision_frontend.decode_frame, []
    monkeypatch.setattr(
        vision_frontend,
        'decode_frame',
        lambda frame, **options: decoded.append(frame.stamp_ns) or decode(frame, **options),
    )
    sweeps = [sweep_at(number) for number in range(4, 10)]
    frame = CameraFrame('CAM_BACK', 1, CompressedImage(format='jpeg', data=b'\xff\xd8\xff'))
    sweeps[2] = replace(sweeps[2], frames={**sweeps[2].frames, 'CAM_BACK': frame})
    for newest in (4, 5):
        clip = replace(sweeps[newest], earlier=tuple(sweeps[newest - 3 : newest]))
        (answer,) = pipeline.answer(clip, QUESTIONS[:1])
        assert len(answer.clip_stamps_ns['CAM_FRONT']) == newest - 2
    assert decoded.count(1) == 1
    assert sweeps[1].frames['CAM_FRONT'].stamp_ns not in decoded


@pytest.mark.slow
def test_tokens_of_few_sweeps_are_held_over_gaps_loops_and_restarts(pipeline):
    clips, held = ClipAssembler(pipeline.clip), []
    gc.collect()
    for number in range(500):
        position, epoch = number % 90, number // 90
        if position % 13 == 5:
            continue
        pipeline.answer(
            clips.add(sweep_at(position, epoch=epoch)), QUESTIONS[:1], must_stop=lambda: True
        )
        held.append(len(pipeline._encoded))
        if number == 200:
            peak_bytes = high_water_bytes()
    assert max(held) == NUM_FRAMES
    assert high_water_bytes() - peak_bytes < 8 << 20
    pipeline.release()
    assert len(pipeline._encoded) == 0


def test_a_longer_clip_than_the_pipeline_is_set_up_for_is_refused(pipeline):
    clip = replace(clip_at(8), earlier=(sweep_at(4), *clip_at(8).earlier))
    with pytest.raises(ConfigError, match=r'earlier: got 4 sweeps, allowed: up to 3; set frames_'):
        pipeline.answer(clip, QUESTIONS)


def test_the_likelihood_of_choices_sees_the_clip(pipeline):
    alone = pipeline.choose(sweep_at(8), QUESTIONS[1], ['yes', 'no'])
    clip = pipeline.choose(clip_at(8), QUESTIONS[1], ['yes', 'no'])
    assert clip.log_likelihoods != alone.log_likelihoods
    assert clip.tokens_kept['CAM_FRONT'] == int(NUM_FRAMES * 81 * 0.1)


def test_the_picture_of_kept_tokens_shows_all_frames(pipeline):
    white = np.full((90, 160, 3), 255, np.uint8)
    clip = clip_at(8)
    frames = {n: CameraFrame(n, f.stamp_ns, jpeg(white)) for n, f in clip.frames.items()}
    whole = replace(clip, frames=frames)
    (answer,) = pipeline.answer(whole, QUESTIONS[:1])
    drawn = draw_kept_tokens(whole, answer, pipeline.views)
    alone = draw_kept_tokens(replace(whole, earlier=()), answer, pipeline.views)
    assert drawn.shape[0] == alone.shape[0] + 2 * 90  # two rows of cameras, 160 px wide frames
    assert picture(0).shape == (90, 160, 3)


def test_the_cameras_are_put_into_the_order_that_the_model_knows(tmp_path):
    names = {name: f'{name.removeprefix("CAM_").lower()} camera' for name in NUSCENES_CAMERAS}
    layout = {
        'camera_names': names,
        'camera': '{name}: ',
        'frame': 'frame {frame} ',
        'frames_per_camera': 2,
    }
    folder = write_byte_qwen3_vl(tmp_path / 'laid-out', layout=layout)
    in_order = DriveConfig(model=str(folder), device='cpu', max_new_tokens=6, drafts='none')
    turned = replace(in_order, cameras=dict(reversed(in_order.cameras.items())))
    pipelines = [DrivingPipeline.from_config(config) for config in (in_order, turned)]
    try:
        assert [p.clip.num_frames for p in pipelines] == [2, 2]
        assert [list(p.num_tokens) for p in pipelines] == [list(NUSCENES_CAMERAS)] * 2
        clip = replace(clip_at(8), earlier=(sweep_at(7),))
        backwards = replace(
            clip,
            frames=dict(reversed(clip.frames.items())),
            earlier=tuple(
                replace(s, frames=dict(reversed(s.frames.items()))) for s in clip.earlier
            ),
        )
        (ours,) = pipelines[0].answer(clip, QUESTIONS[:1])
        (other,) = pipelines[1].answer(backwards, QUESTIONS[:1])
        assert tuple(other.keep_indices) == NUSCENES_CAMERAS
        assert ours.answer == other.answer
        assert ours.mean_log_probability == pytest.approx(other.mean_log_probability, rel=1e-5)

        tokens = pipelines[1].encode(backwards)
        (again,) = pipelines[1].answer_tokens(backwards, tokens, QUESTIONS[:1])
        assert again.answer == other.answer
    finally:
        for pipeline in pipelines:
            pipeline.close()


def test_a_camera_that_the_model_has_no_name_for_is_refused(tmp_path):
    layout = {'camera_names': {'CAM_FRONT': 'Front camera'}}
    folder = write_byte_qwen3_vl(tmp_path / 'laid-out', layout=layout)
    with pytest.raises(ConfigError, match=r'cameras: got CAM_FRONT_LEFT, allowed: CAM_FRONT, wh'):
        DrivingPipeline.from_config(DriveConfig(model=str(folder), device='cpu'))


def test_a_context_stands_before_the_question(pipeline, config):
    (alone,) = pipeline.answer(sweep_at(0), QUESTIONS[:1])
    pipeline.reconfigure(replace(config, context='Turn left.'))
    (route,) = pipeline.answer(sweep_at(0), QUESTIONS[:1])
    (other,) = pipeline.answer(sweep_at(0), QUESTIONS[:1], context='')
    assert (alone.context, route.context, other.context) == ('', 'Turn left.', '')
    assert alone.mean_log_probability == other.mean_log_probability != route.mean_log_probability


def test_a_context_that_cannot_be_given_is_refused_at_start(config):
    with pytest.raises(ConfigError, match=r'context: got a text of 4001 characters'):
        DrivingPipeline.from_config(replace(config, context='x' * 4001))
