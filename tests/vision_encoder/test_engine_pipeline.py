"""The whole pipeline on an engine: the same kept tokens and answers as on torch."""

from dataclasses import replace

from engine_helpers import CPU, engine_folder, ignore_progress, plan_of
from p2d_node.config import DriveConfig, EncoderConfig
from p2d_node.engine_build.build import build_engine
from p2d_node.errors import EngineMismatchError, ImageDecodeError
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import CameraFrame, RawImage
import pytest
from sweeps import make_frame_set, picture, STAMP_NS
from tiny_checkpoints import write_qwen2_5_vl, write_qwen3_vl

QUESTIONS = ('What should the ego vehicle do next?', 'Is there a car?')


@pytest.fixture(scope='module')
def config(tiny_checkpoint):
    return DriveConfig(
        model=str(tiny_checkpoint),
        device='cpu',
        max_new_tokens=12,
        encoder=EncoderConfig(backend='torch'),
        retention_ratio=dict.fromkeys(DriveConfig().cameras, 0.25),
    )


@pytest.fixture(scope='module')
def on_torch(config):
    pipeline = DrivingPipeline.from_config(config)
    yield pipeline
    pipeline.close()


def on_engine(config, engine_dir, backend='onnxruntime'):
    encoder = EncoderConfig(backend=backend, engine_dir=str(engine_dir))
    return DrivingPipeline.from_config(replace(config, encoder=encoder))


def kept(answers):
    return [{c: i.tolist() for c, i in a.keep_indices.items()} for a in answers]


def test_what_a_sweep_was_seen_as_is_left_alone_by_the_next(config, built_engines):
    pipeline = on_engine(config, built_engines)
    try:
        first = pipeline.encode(make_frame_set(seed=1))
        before = first.clone()
        assert not pipeline.encode(make_frame_set(seed=2)).equal(before)
        assert first.equal(before)
    finally:
        pipeline.close()


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['built_engines', 'frame_engines'])
def test_an_engine_keeps_the_same_tokens_and_gives_the_same_answers(
    config, on_torch, request, kind
):
    engine_dir = request.getfixturevalue(kind)
    pipeline = on_engine(config, engine_dir)
    try:
        for seed in range(4):
            sweep = make_frame_set(seed=seed)
            expected = on_torch.answer(sweep, QUESTIONS)
            actual = pipeline.answer(sweep, QUESTIONS)
            assert kept(actual) == kept(expected)
            assert [a.answer for a in actual] == [a.answer for a in expected]
            assert actual[0].encoder.endswith(engine_folder(engine_dir).name)
            assert min(actual[0].times.preprocess_ms, actual[0].times.encode_ms) > 0
    finally:
        pipeline.close()


@pytest.mark.slow
@pytest.mark.parametrize('write', [write_qwen2_5_vl, write_qwen3_vl])
def test_qwen_vl_on_an_engine_gives_the_same_answers(config, tmp_path, write):
    """With windows of attention that are cut at the edge, or deepstack features."""
    checkpoint = write(tmp_path / 'qwen')
    built = build_engine(plan_of(checkpoint, 'onnxruntime'), tmp_path, CPU, ignore_progress)
    assert built.verification is not None
    assert built.verification.passed
    config = replace(config, model=str(checkpoint))
    in_torch, pipeline = DrivingPipeline.from_config(config), on_engine(config, tmp_path)
    try:
        for seed in range(3):
            sweep = make_frame_set(seed=seed)
            expected, actual = (p.answer(sweep, QUESTIONS) for p in (in_torch, pipeline))
            assert kept(actual) == kept(expected)
            assert [a.answer for a in actual] == [a.answer for a in expected]
            assert actual[0].encoder.endswith(built.folder.name)
    finally:
        in_torch.close()
        pipeline.close()


def test_fewer_views_than_the_engine_has_are_answered_too(config, on_torch, frame_engines):
    pipeline = on_engine(config, frame_engines)
    try:
        sweep = make_frame_set(tuple(config.cameras)[:4])
        pipeline.answer(make_frame_set(seed=5), QUESTIONS)
        assert kept(pipeline.answer(sweep, QUESTIONS)) == kept(on_torch.answer(sweep, QUESTIONS))
    finally:
        pipeline.close()


def raw_frame(camera, encoding, height=90, width=160, order=slice(None)):
    pixels = picture(3, height, width)[..., order].tobytes()
    image = RawImage(
        height=height,
        width=width,
        encoding=encoding,
        step=3 * width,
        is_bigendian=0,
        data=pixels,
    )
    return CameraFrame(camera, STAMP_NS, image)


def test_rgb_and_bgr_cameras_are_seen_alike(config, frame_engines):
    pipeline = on_engine(config, frame_engines)
    try:
        sweep = make_frame_set()
        bgr = {c: raw_frame(c, 'bgr8') for c in sweep.frames}
        rgb = {c: raw_frame(c, 'rgb8', order=slice(None, None, -1)) for c in sweep.frames}
        answers = [pipeline.answer(replace(sweep, frames=f), QUESTIONS) for f in (bgr, rgb)]
        assert kept(answers[0]) == kept(answers[1])
        # Drafts that are verified together round differently.
        probability = pytest.approx(answers[1][0].mean_log_probability, rel=1e-5)
        assert answers[0][0].mean_log_probability == probability
    finally:
        pipeline.close()


def test_frames_of_another_size_are_refused_with_the_command_that_helps(config, frame_engines):
    pipeline = on_engine(config, frame_engines)
    try:
        sweep = make_frame_set()
        frames = {c: raw_frame(c, 'bgr8', height=100) for c in sweep.frames}
        with pytest.raises(ImageDecodeError, match='--camera-size 100x160, or --input pixel_valu'):
            pipeline.answer(replace(sweep, frames=frames), QUESTIONS)
        assert pipeline.answer(sweep, QUESTIONS)
    finally:
        pipeline.close()


def test_another_number_of_cameras_needs_another_engine(config, built_engines):
    three = {name: config.cameras[name] for name in tuple(config.cameras)[:3]}
    fewer = replace(config, cameras=three, retention_ratio={})
    with pytest.raises(EngineMismatchError, match='number of cameras: the engine has 6, here it'):
        on_engine(fewer, built_engines)


@pytest.mark.slow
def test_the_untrained_model_has_engines_too(config, tmp_path):
    from p2d_node.cli.main import main

    arguments = ['--engine-dir', str(tmp_path), '--input', 'pixel_values', '--model', 'untrained']
    assert main(['build-engine', '--backend', 'onnxruntime', *arguments]) == 0
    pipeline = on_engine(replace(config, model='untrained'), tmp_path)
    pipeline.close()
    assert 'onnxruntime' in pipeline.encoder_identity
