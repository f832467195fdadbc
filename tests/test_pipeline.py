from concurrent.futures import Future
from dataclasses import replace
import math

import numpy as np
from p2d_node.config import DriveConfig, EncoderConfig, SyncConfig
from p2d_node.errors import ConfigError, ImageDecodeError, InferenceError
from p2d_node.pipeline import DrivingPipeline
from p2d_node.preprocessing import ImageProcessing
from p2d_node.records import CameraFrame, CompressedImage, Cut, FrameSet, NUSCENES_CAMERAS
from p2d_node.views import SeparateViews
from p2d_node.vision_frontend import VisionFrontend
from PIL import Image
import pytest
from sweeps import jpeg, make_frame_set, picture, STAMP_NS
import torch

QUESTIONS = ('What should the ego vehicle do next?', 'Is there a car?')
TOKENS = 81


@pytest.fixture(scope='module')
def config(tiny_checkpoint):
    return DriveConfig(model=str(tiny_checkpoint), device='cpu', max_new_tokens=12)


@pytest.fixture(scope='module')
def pipeline(config):
    pipeline = DrivingPipeline.from_config(config)
    yield pipeline
    pipeline.close()


@pytest.fixture(autouse=True)
def _reset(pipeline, config):
    pipeline.reconfigure(config)


def test_one_answer_per_question_carries_the_sweep_it_rests_on(pipeline):
    frame_set = make_frame_set()
    answers = pipeline.answer(frame_set, QUESTIONS)
    assert [a.question for a in answers] == list(QUESTIONS)
    for answer in answers:
        assert answer.stamp_ns == STAMP_NS
        assert answer.camera_stamps_ns == {n: f.stamp_ns for n, f in frame_set.frames.items()}
        assert tuple(answer.keep_indices) == NUSCENES_CAMERAS
        assert set(answer.tokens_kept.values()) == {int(TOKENS * 0.1)}
        assert set(answer.tokens_total.values()) == {TOKENS}
        assert answer.model == 'tiny (untrained)'
        assert answer.encoder == 'torch float32 cpu'
        assert 1 <= answer.num_generated_tokens <= 12
        assert answer.mean_log_probability < 0


def prepared_by(pipeline, frame_set):
    future = Future()
    future.set_result(pipeline.prepare(frame_set))
    return future


def test_a_sweep_that_was_prepared_ahead_has_the_same_answers(pipeline):
    sweep, other = make_frame_set(), make_frame_set(seed=3)
    (expected,) = pipeline.answer_groups(sweep, [QUESTIONS])
    prepared = prepared_by(pipeline, sweep)
    pipeline.answer(other, QUESTIONS)  # meanwhile: it overwrites nothing of the prepared sweep
    (actual,) = pipeline.answer_groups(sweep, [QUESTIONS], prepared=prepared)
    assert [a.answer for a in actual] == [a.answer for a in expected]
    for ours, other in zip(actual, expected, strict=True):
        # Drafts that are verified together round differently.
        assert ours.mean_log_probability == pytest.approx(other.mean_log_probability, rel=1e-5)


def test_broken_frames_of_a_prepared_sweep_are_treated_as_the_policy_then_says(pipeline, config):
    sweep = make_frame_set()
    frames = dict(sweep.frames)
    frames['CAM_BACK'] = replace(
        frames['CAM_BACK'], payload=CompressedImage(format='jpeg', data=b'\xff\xd8\xff')
    )
    sweep = replace(sweep, frames=frames)
    prepared = prepared_by(pipeline, sweep)
    with pytest.raises(ImageDecodeError, match='CAM_BACK'):
        list(pipeline.answer_groups(sweep, [QUESTIONS], prepared=prepared))
    pipeline.reconfigure(replace(config, missing_camera_policy='drop_view'))
    (answers,) = pipeline.answer_groups(sweep, [QUESTIONS], prepared=prepared)
    assert list(answers[0].broken_frames) == ['CAM_BACK']
    assert len(answers[0].camera_stamps_ns) == 5


def test_frames_are_not_prepared_into_a_buffer_that_may_be_in_use():
    frontend = VisionFrontend(
        SeparateViews((9, 9), padded=False),
        ImageProcessing(
            height_px=126,
            width_px=126,
            fit='squash',
            resample=3,
            rescale_factor=1 / 255,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        num_cameras=6,
        frame_size=(90, 160),
        max_pixels=1 << 20,
        device=torch.device('cpu'),
    )
    in_use = frontend.preprocess(frontend.decode(make_frame_set()).frames)
    before = in_use.clone()
    assert frontend.prepare(make_frame_set(seed=3)).pixels is None
    assert torch.equal(in_use, before)
    frontend.close()


def test_all_stages_are_timed(pipeline):
    first, second = pipeline.answer(make_frame_set(), QUESTIONS)
    times = first.times
    stages = (times.decode_ms, times.preprocess_ms, times.encode_ms, times.select_ms)
    assert all(duration > 0 for duration in stages)
    assert times.prefill_ms > 0
    assert sum(stages) <= times.ttft_ms < times.total_ms
    assert second.times == times  # answered together


def test_the_retention_ratio_of_each_camera_is_followed(pipeline, config):
    ratios = dict(zip(NUSCENES_CAMERAS, (1.0, 0.5, 0.25, 0.1, 0.05, 0.001), strict=True))
    pipeline.reconfigure(replace(config, retention_ratio=ratios))
    (answer,) = pipeline.answer(make_frame_set(), QUESTIONS[:1])
    assert list(answer.tokens_kept.values()) == [81, 40, 20, 8, 4, 1]


@pytest.mark.parametrize('selector', ['random', 'grid', 'divprune', 'dart'])
def test_the_baselines_answer_with_the_same_number_of_tokens(pipeline, config, selector):
    pipeline.reconfigure(replace(config, selector=selector))
    (answer,) = pipeline.answer(make_frame_set(), QUESTIONS[:1])
    assert answer.answer
    assert sum(answer.tokens_kept.values()) == 6 * int(TOKENS * 0.1)


def test_cameras_can_share_one_budget(pipeline, config):
    sweep = make_frame_set()
    wall = jpeg(np.full((90, 160, 3), 127, np.uint8))
    frames = {**sweep.frames, 'CAM_BACK': replace(sweep.frames['CAM_BACK'], payload=wall)}
    pipeline.reconfigure(replace(config, allocation='adaptive'))
    (answer,) = pipeline.answer(replace(sweep, frames=frames), QUESTIONS[:1])
    kept = answer.tokens_kept
    assert sum(kept.values()) == 6 * int(TOKENS * 0.1)
    assert min(kept.values()) == kept['CAM_BACK'] < max(kept.values())


def test_the_same_sweep_gives_the_same_answer_and_another_sweep_other_tokens(pipeline):
    first, again, other = (
        pipeline.answer(make_frame_set(seed=seed), QUESTIONS[:1])[0] for seed in (0, 0, 1)
    )
    assert first.answer == again.answer
    kept = [[i.tolist() for i in a.keep_indices.values()] for a in (first, again, other)]
    assert kept[0] == kept[1] != kept[2]


def test_tokens_are_dropped_before_the_layer_that_is_asked_for(pipeline, config):
    ratios = dict(zip(NUSCENES_CAMERAS, (1.0, 0.5, 0.25, 0.1, 0.05, 0.001), strict=True))
    answers = []
    for layer in (0, 1):
        changed = replace(config, prune_layer=layer, retention_ratio=ratios)
        pruning = DrivingPipeline.from_config(changed)
        answers += pruning.answer(make_frame_set(), QUESTIONS[:1])
        pruning.close()
    for answer in answers:
        assert list(answer.tokens_kept.values()) == [81, 40, 20, 8, 4, 1]
        assert answer.times.select_ms > 0
    kept = [[i.tolist() for i in a.keep_indices.values()] for a in answers]
    assert kept[0] != kept[1]  # chosen by other features
    assert answers[0].mean_log_probability != answers[1].mean_log_probability


def test_a_layer_that_the_model_does_not_have_is_refused(config):
    with pytest.raises(ConfigError, match='prune_layer: got 2, allowed: 0 to 1, the layers of'):
        DrivingPipeline.from_config(replace(config, prune_layer=2))


def test_questions_together_are_answered_as_one_by_one(config):
    config = replace(config, dtype='float64')
    pipeline = DrivingPipeline.from_config(config)
    questions = (*QUESTIONS, 'why?', 'Is there a truck ahead?', QUESTIONS[0])
    texts = []
    for size in (1, 2, 16):
        pipeline.reconfigure(replace(config, question_batch=size))
        texts.append([answer.answer for answer in pipeline.answer(make_frame_set(), questions)])
    assert texts[0] == texts[1] == texts[2]
    alone = [pipeline.answer(make_frame_set(), [question])[0].answer for question in questions]
    pipeline.close()
    assert texts[0] == alone
    assert len(set(alone)) > 2


def test_a_missing_view_is_left_out_not_made_up(pipeline):
    cameras = tuple(name for name in NUSCENES_CAMERAS if name != 'CAM_BACK')
    (answer,) = pipeline.answer(make_frame_set(cameras), QUESTIONS[:1])
    assert tuple(answer.camera_stamps_ns) == cameras
    (alone,) = pipeline.answer(make_frame_set(cameras[:1]), QUESTIONS[:1])
    assert tuple(alone.tokens_kept) == cameras[:1]


def test_no_questions_cost_nothing(pipeline):
    broken = replace(make_frame_set(), frames={'CAM_FRONT': CameraFrame('CAM_FRONT', 1, 'junk')})
    assert pipeline.answer(broken, []) == []


def test_a_deadline_cuts_answers_and_marks_them(pipeline, config):
    pipeline.reconfigure(replace(config, deadline_ms=1.0, max_new_tokens=500, drafts='none'))
    answers = pipeline.answer(make_frame_set(), QUESTIONS)
    assert {(a.cut, a.num_generated_tokens) for a in answers} == {(Cut.DEADLINE, 1)}
    pipeline.reconfigure(config)
    (stopped,) = pipeline.answer(make_frame_set(), QUESTIONS[:1], must_stop=lambda: True)
    assert stopped.cut is Cut.DEADLINE


def test_after_the_deadline_no_further_batch_is_begun(pipeline, config):
    pipeline.reconfigure(replace(config, deadline_ms=1.0, question_batch=1, drafts='none'))
    first, second = pipeline.answer(make_frame_set(), QUESTIONS)
    assert (first.num_generated_tokens, second.num_generated_tokens) == (1, 0)
    assert (second.answer, second.cut) == ('', Cut.DEADLINE)
    assert math.isnan(second.mean_log_probability)
    assert second.times == first.times


@pytest.mark.parametrize(
    ('question', 'reason'),
    [
        ('What <image> is this?', 'got a text with <image>, which only the chat template'),
        ('car ' * 1001, 'got a text of 4004 characters, allowed: up to 4000'),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(pipeline, config, question, reason):
    with pytest.raises(ConfigError, match=reason):
        pipeline.check_questions(['Is there a car?', question])
    with pytest.raises(ConfigError, match=reason):
        DrivingPipeline.from_config(replace(config, questions=(question,)))


def test_questions_that_leave_no_room_for_the_pictures_are_refused(pipeline, monkeypatch):
    pipeline.check_questions(['car ' * 50])
    monkeypatch.setattr(pipeline._language_model._family, 'max_positions', 6 * 81 + 100)
    pipeline.check_questions(['Is there a car?'])
    with pytest.raises(ConfigError, match=r'makes 5\d\d|makes 6\d\d tokens'):
        pipeline.check_questions(['car ' * 100])


def with_broken(*cameras):
    """Return a sweep in which frames of these cameras are no images."""
    frame_set = make_frame_set()
    payload = CompressedImage(format='jpeg', data=b'\xff\xd8\xff' + bytes(50))
    broken = {name: CameraFrame(name, 1, payload) for name in cameras}
    return replace(frame_set, frames={**frame_set.frames, **broken})


def test_a_broken_frame_names_its_camera(pipeline):
    with pytest.raises(ImageDecodeError, match='CAM_BACK: got 53 bytes'):
        pipeline.answer(with_broken('CAM_BACK'), QUESTIONS)


def test_drop_view_answers_without_broken_frames_as_without_missing_ones(pipeline, config):
    pipeline.reconfigure(replace(config, missing_camera_policy='drop_view'))
    others = tuple(name for name in NUSCENES_CAMERAS if name != 'CAM_BACK')
    frames = {name: make_frame_set().frames[name] for name in others}
    missing = replace(make_frame_set(), frames=frames, missing=('CAM_BACK',))
    broken = pipeline.answer(with_broken('CAM_BACK'), QUESTIONS)[0]
    expected = pipeline.answer(missing, QUESTIONS)[0]
    assert list(broken.broken_frames) == ['CAM_BACK']
    assert tuple(broken.camera_stamps_ns) == others
    assert broken.answer == expected.answer
    for name in others:
        np.testing.assert_array_equal(broken.keep_indices[name], expected.keep_indices[name])
    choice = pipeline.choose(with_broken('CAM_BACK'), QUESTIONS[0], ['yes', 'no'])
    assert tuple(choice.tokens_kept) == others


def test_the_tokens_of_a_lost_view_go_to_the_others(pipeline, config):
    pipeline.reconfigure(replace(config, missing_camera_policy='drop_view'))
    kept = pipeline.answer(with_broken('CAM_FRONT'), QUESTIONS)[0].tokens_kept
    assert sorted(kept.values()) == [9, 9, 10, 10, 10]  # 6 x 8 tokens
    ratios = dict.fromkeys(NUSCENES_CAMERAS, 1.0)
    pipeline.reconfigure(
        replace(config, missing_camera_policy='drop_view', retention_ratio=ratios)
    )
    kept = pipeline.answer(with_broken('CAM_FRONT'), QUESTIONS)[0].tokens_kept
    assert set(kept.values()) == {TOKENS}


def test_too_few_whole_frames_are_not_answered_about(pipeline, config):
    pipeline.reconfigure(replace(config, missing_camera_policy='drop_view'))
    broken = NUSCENES_CAMERAS[2:]  # two are left, min_views is 3
    with pytest.raises(ImageDecodeError) as caught:
        pipeline.answer(with_broken(*broken), QUESTIONS)
    assert tuple(caught.value.broken) == broken


def test_a_fault_of_the_model_is_reported_and_the_next_sweep_works(pipeline, monkeypatch):
    def out_of_memory(pixel_values: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError('no memory left\ntrace')

    with monkeypatch.context() as patch:
        patch.setattr(pipeline._encoder, 'encode', out_of_memory)
        with pytest.raises(InferenceError, match=f'sweep {STAMP_NS}: OutOfMemoryError: no memory'):
            pipeline.answer(make_frame_set(), QUESTIONS)
    assert len(pipeline.answer(make_frame_set(), QUESTIONS)) == 2


def test_logits_that_are_not_finite_are_no_answer_and_no_choice(overflowing_checkpoint):
    config = DriveConfig(model=str(overflowing_checkpoint), device='cpu', dtype='float16')
    pipeline = DrivingPipeline.from_config(config)
    with pytest.raises(InferenceError, match=r'logits that are NaN or infinite.*; set dtype'):
        pipeline.answer(make_frame_set(), QUESTIONS)
    with pytest.raises(InferenceError, match='logits that are NaN or infinite'):
        pipeline.choose(make_frame_set(), QUESTIONS[0], ['stop', 'turn'])
    pipeline.close()


def test_the_built_in_untrained_model_has_the_papers_geometry():
    config = DriveConfig(model='untrained', device='cpu', max_new_tokens=2)
    pipeline = DrivingPipeline.from_config(config)
    (answer,) = pipeline.answer(make_frame_set(), QUESTIONS[:1])
    pipeline.close()
    assert pipeline.untrained
    assert 'untrained' in answer.model
    assert set(answer.tokens_total.values()) == {729}
    assert set(answer.tokens_kept.values()) == {72}


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'retention_ratio': {'CAM_FRONT': 0.0}}, r'retention_ratio\.CAM_FRONT: got 0\.0'),
        ({'retention_ratio': {'CAM_BACK': 1.5}}, r'retention_ratio\.CAM_BACK: got 1\.5'),
        ({'retention_ratio': {'CAM_BACK': float('nan')}}, r'CAM_BACK: got nan'),
        ({'retention_ratio': {'CAM_TOP': 0.5}}, r"camera 'CAM_TOP', allowed: CAM_FRONT"),
        ({'max_new_tokens': 0}, r'max_new_tokens: got 0, allowed: 1 to 4096'),
        ({'deadline_ms': -1.0}, r'deadline_ms: got -1\.0'),
        ({'deadline_ms': 1e-320}, r'deadline_ms: got 1e-320, allowed: 0, or 1 to 600000'),
        ({'max_answer_age_ms': 0.9}, r'max_answer_age_ms: got 0\.9, allowed: 0, or 1 to 600000'),
        ({'max_sweep_s': 0.4}, r'max_sweep_s: got 0\.4, allowed: 0, or 0\.5 to 3600'),
        ({'questions': ('What?', ' ')}, r'questions: got an empty question'),
        ({'selector': 'best'}, r"selector: got 'best', allowed: tfps"),
        ({'missing_camera_policy': 'wait'}, r'allowed: skip, drop_view'),
        ({'dtype': 'int8'}, r"dtype: got 'int8', allowed: auto, float32"),
        ({'cameras': {}}, r'cameras: got none'),
        (
            {'question_batch': 17, 'max_new_tokens': 4096},
            r'question_batch: got 17 with max_new_tokens 4096, allowed: up to 65536 tokens per',
        ),
    ],
)
def test_bad_values_are_refused_with_what_is_allowed(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        DriveConfig(**changes)


def test_bad_values_of_a_stage_are_refused():
    with pytest.raises(ConfigError, match=r"encoder\.backend: got 'magic'"):
        EncoderConfig(backend='magic')
    with pytest.raises(ConfigError, match=r'sync\.tolerance_ms: got -1'):
        SyncConfig(tolerance_ms=-1)
    with pytest.raises(ConfigError, match=r"reference_camera: got 'CAM_TOP'"):
        DriveConfig(sync=SyncConfig(reference_camera='CAM_TOP'))


def test_a_sweep_is_made_of_paths_arrays_and_pillow_images(pipeline, tmp_path):
    pixels = {name: picture(number) for number, name in enumerate(NUSCENES_CAMERAS)}
    images = {}
    for number, (name, image) in enumerate(reversed(pixels.items())):
        path = tmp_path / f'{name}.png'
        Image.fromarray(image).save(path)
        images[name] = (path, str(path), image, Image.fromarray(image))[number % 4]
    sweep = FrameSet.from_images(images, stamps_ns={'CAM_FRONT': 7})
    assert tuple(sweep.frames) == NUSCENES_CAMERAS
    assert (sweep.stamp_ns, sweep.frames['CAM_BACK'].stamp_ns) == (7, 0)
    (answer,) = pipeline.answer(sweep, QUESTIONS[:1])
    (same,) = pipeline.answer(FrameSet.from_images(pixels), QUESTIONS[:1])
    assert answer.mean_log_probability == same.mean_log_probability
    times = answer.times
    assert (times.sync_wait_ms, times.queue_ms) == (0.0, 0.0)
    assert times.ttft_ms <= times.total_ms < 60_000


@pytest.mark.parametrize(
    ('images', 'reason'),
    [
        ({}, 'images: got none, allowed: one per camera'),
        ({'CAM_FRONT': '/no.jpg'}, r'images: CAM_FRONT: /no\.jpg cannot be read: No such file'),
        ({'CAM_FRONT': np.zeros((2, 2))}, r'CAM_FRONT: got float64 \[2, 2\], allowed: a path'),
        ({'CAM_FRONT': None}, r'CAM_FRONT: got object \[\], allowed'),
    ],
)
def test_images_that_cannot_be_used_are_named(images, reason):
    with pytest.raises(ConfigError, match=reason):
        FrameSet.from_images(images)


def test_one_text_in_place_of_a_list_is_refused(pipeline):
    with pytest.raises(ConfigError, match="questions: got the text 'hello', allowed: a list"):
        pipeline.answer(make_frame_set(), 'hello')
    with pytest.raises(ConfigError, match="choices: got the text 'abc', allowed: a list"):
        pipeline.choose(make_frame_set(), QUESTIONS[0], 'abc')


@pytest.mark.parametrize('model', [3, None, ''])
def test_a_model_that_is_not_a_text_is_refused(model):
    with pytest.raises(ConfigError, match=r'^model: got '):
        DriveConfig(model=model)
