"""Answers from cached keyframes are the pipeline's own, and nothing is encoded twice."""

from __future__ import annotations

from dataclasses import replace
import errno
import json
import os

from disk_limits import files_up_to
from p2d_node.config import DriveConfig, EncoderConfig
from p2d_node.errors import ConfigError
from p2d_node.evaluation.answering import group_keyframes, load_sweep
from p2d_node.evaluation.drivelm_questions import read_questions
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.tuning.keyframe_cache import digest_pictures, KeyframeCache
from p2d_node.tuning.objective import Objective
from p2d_node.tuning.search_space import SearchSpace
from p2d_node.tuning.trial_evaluation import TrialEvaluator
import pytest
from safetensors.torch import load_file, save_file
import torch

RATIOS = dict(zip(NUSCENES_CAMERAS, (0.3, 0.05, 0.12, 0.01, 1.0, 0.2), strict=True))


def in_torch() -> DriveConfig:
    """Settings that no engine of the user's changes."""
    return DriveConfig(encoder=EncoderConfig(backend='torch'))


@pytest.fixture(scope='module')
def pipeline():
    pipeline = DrivingPipeline.from_config(in_torch())
    yield pipeline
    pipeline.close()


@pytest.fixture(scope='module')
def keyframes(searched_folder):
    return group_keyframes(read_questions(searched_folder / 'drivelm.json'))[:2]


def encode_all(pipeline, keyframes, image_root, folder, model_digest='a model'):
    digests = digest_pictures(keyframes, image_root, NUSCENES_CAMERAS)
    cache = KeyframeCache(folder, pipeline, image_root, model_digest=model_digest)
    assert list(cache.prepare(keyframes, digests))[-1] == len(keyframes)
    return cache, digests


@pytest.mark.slow
@pytest.mark.parametrize(
    'selection',
    [{}, {'prune_layer': 1}, {'allocation': 'adaptive'}, {'selector': 'grid'}],
    ids=['tfps', 'prune_layer', 'adaptive', 'grid'],
)
def test_answers_from_cached_tokens_are_those_from_the_images(
    pipeline, keyframes, searched_folder, tmp_path, selection
):
    config = replace(in_torch(), retention_ratio=RATIOS, **selection)
    pipeline.reconfigure(config)
    cache, digests = encode_all(pipeline, keyframes, searched_folder, tmp_path)
    evaluator = TrialEvaluator(
        pipeline,
        cache,
        Objective(),
        SearchSpace(num_tokens=pipeline.num_tokens),
        keyframes=keyframes,
        digests=digests,
    )
    for keyframe in keyframes:
        sweep = load_sweep(keyframe, searched_folder, NUSCENES_CAMERAS)
        direct = pipeline.answer(sweep, [q.question for q in keyframe.questions])
        answered = evaluator.answer(keyframe, RATIOS)
        assert [text for _, text in answered] == [answer.answer for answer in direct]
        has_order = selection in ({}, {'allocation': 'adaptive'})
        loaded = cache.load(keyframe, digests[keyframe.name])
        assert (loaded.order is not None) == has_order
        if has_order:
            kept = loaded.keep_indices(
                [len(indices) for indices in direct[0].keep_indices.values()],
                list(RATIOS.values()),
                adaptive='allocation' in selection,
            )
            expected = [indices.tolist() for indices in direct[0].keep_indices.values()]
            assert [indices.tolist() for indices in kept] == expected


@pytest.mark.slow
@pytest.mark.parametrize('scope', ['clip', 'frame'])
def test_answers_about_clips_from_cached_tokens_are_those_from_the_images(
    keyframes, searched_folder, tmp_path, scope
):
    config = replace(
        in_torch(),
        retention_ratio=RATIOS,
        frames_per_camera=2,
        frame_interval_ms=500.0,
        selection_scope=scope,
    )
    pipeline = DrivingPipeline.from_config(config)
    try:
        clip = pipeline.clip
        digests = digest_pictures(keyframes, searched_folder, NUSCENES_CAMERAS, clip)
        cache = KeyframeCache(tmp_path, pipeline, searched_folder, model_digest='a model')
        list(cache.prepare(keyframes, digests))
        space = SearchSpace(num_tokens=pipeline.num_tokens)
        evaluator = TrialEvaluator(
            pipeline, cache, Objective(), space, keyframes=keyframes, digests=digests
        )
        lengths = []
        for keyframe in keyframes:
            sweep = load_sweep(keyframe, searched_folder, NUSCENES_CAMERAS, clip)
            direct = pipeline.answer(sweep, [q.question for q in keyframe.questions])
            answered = evaluator.answer(keyframe, RATIOS)
            assert [text for _, text in answered] == [answer.answer for answer in direct]
            lengths.append(len(sweep.earlier) + 1)
            has_order = lengths[-1] == 2 and scope == 'clip'
            assert (cache.load(keyframe, digests[keyframe.name]).order is not None) == has_order
        assert sorted(lengths) == [1, 2]
    finally:
        pipeline.close()


def test_a_cached_keyframe_is_not_encoded_again(pipeline, keyframes, searched_folder, tmp_path):
    pipeline.reconfigure(in_torch())
    encode_all(pipeline, keyframes, searched_folder, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 2
    encode_all(pipeline, keyframes, searched_folder, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    encode_all(pipeline, keyframes[:1], searched_folder, tmp_path, model_digest='another model')
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.attack(
    'images that are others while a search encodes them than when it was begun',
    'the search ends; nothing is cached under the hash of the first',
)
def test_images_that_change_before_they_are_encoded_are_not_cached(
    pipeline, keyframes, searched_folder, tmp_path
):
    pipeline.reconfigure(in_torch())
    digests = digest_pictures(keyframes, searched_folder, NUSCENES_CAMERAS)
    first, second = (keyframe.name for keyframe in keyframes)
    cache = KeyframeCache(tmp_path, pipeline, searched_folder, model_digest='a model')
    with pytest.raises(ConfigError, match=f'images: {first}: they have changed'):
        list(cache.prepare(keyframes, {first: digests[second], second: digests[first]}))
    assert not list(tmp_path.glob('*.safetensors'))


def test_a_disk_that_takes_no_more_is_named(pipeline, keyframes, searched_folder, tmp_path):
    pipeline.reconfigure(in_torch())
    with (
        files_up_to(1000),
        pytest.raises(ConfigError, match=r'cache: .*safetensors cannot be written: File too'),
    ):
        encode_all(pipeline, keyframes, searched_folder, tmp_path)
    assert not list(tmp_path.glob('*.safetensors'))
    encode_all(pipeline, keyframes, searched_folder, tmp_path)


def test_a_folder_that_takes_no_lock_is_named(pipeline, keyframes, searched_folder, tmp_path):
    cache, digests = encode_all(pipeline, keyframes, searched_folder, tmp_path)
    for path in list(tmp_path.iterdir()):
        path.unlink()
        path.with_suffix('.lock').mkdir()
    with pytest.raises(ConfigError, match=r'cache: .* cannot be written: Is a directory'):
        list(cache.prepare(keyframes, digests))


def test_a_file_that_was_cut_is_refused_with_its_name(
    pipeline, keyframes, searched_folder, tmp_path
):
    pipeline.reconfigure(in_torch())
    cache, digests = encode_all(pipeline, keyframes, searched_folder, tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r'safetensors: not a complete file .* remove it'):
        cache.load(keyframes[0], digests[keyframes[0].name])


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_that_refuses_locks_is_named_and_not_waited_for(
    pipeline, keyframes, searched_folder, tmp_path, monkeypatch, number
):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    pipeline.reconfigure(in_torch())
    monkeypatch.setattr('fcntl.flock', refuse)
    with pytest.raises(ConfigError, match=rf'cache: .* cannot be written: {os.strerror(number)}'):
        encode_all(pipeline, keyframes, searched_folder, tmp_path)


def test_a_file_system_without_locks_is_used_all_the_same(
    pipeline, keyframes, searched_folder, tmp_path, monkeypatch
):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    pipeline.reconfigure(in_torch())
    monkeypatch.setattr('fcntl.flock', refuse)
    encode_all(pipeline, keyframes, searched_folder, tmp_path)
    assert len(list(tmp_path.glob('*.safetensors'))) == 2


def first_only(tensor):
    return tensor[:1].contiguous()


def with_nan(tensor):
    changed = tensor.clone()
    changed[0, -1] = float('nan')
    return changed


DAMAGE = {
    'views': ('visual_tokens', first_only, 'got the shape [1, 196, '),
    'one dimension': ('visual_tokens', lambda _: torch.zeros(3), 'got the shape [3], allowed'),
    'no width': ('visual_tokens', lambda t: t[:, :, :0], 'got the shape'),
    'tokens': ('visual_tokens', lambda t: t[:, :5], 'got the shape [6, 5, '),
    'width': ('visual_tokens', lambda t: t[:, :, 1:], ', allowed: [6, 196, '),
    'whole numbers': ('visual_tokens', lambda t: t.to(torch.int8), 'allowed: finite floats'),
    'not finite': ('visual_tokens', with_nan, 'allowed: finite floats'),
    'order of one view': ('order', first_only, 'got the shape [1, 196], allowed: [6, 196]'),
    'order of floats': ('order', lambda t: t.float(), 'allowed: each of 0 to 195'),
    'order outside': ('order', lambda t: t + 10**9, 'allowed: each of 0 to 195'),
    'order below': ('order', lambda t: t - 1, 'allowed: each of 0 to 195'),
    'order twice': ('order', torch.zeros_like, 'allowed: each of 0 to 195'),
    'distances of one view': ('distances', first_only, 'got the shape [1, 196]'),
    'distances of halves': ('distances', lambda t: t.half(), 'numbers of type float32'),
    'distances not numbers': ('distances', with_nan, 'numbers of type float32'),
}


@pytest.mark.attack(
    'an encoded keyframe in the cache with tensors of another shape, type or range',
    'refused, with the file to remove',
)
@pytest.mark.parametrize('damage', DAMAGE)
def test_a_cached_keyframe_of_other_tensors_is_refused(
    pipeline, keyframes, searched_folder, tmp_path, damage
):
    pipeline.reconfigure(in_torch())
    cache, digests = encode_all(pipeline, keyframes[:1], searched_folder, tmp_path)
    (path,) = tmp_path.glob('*.safetensors')
    tensors = load_file(path)
    name, change, reason = DAMAGE[damage]
    save_file({**tensors, name: change(tensors[name]).contiguous()}, path)
    with pytest.raises(ConfigError) as caught:
        cache.load(keyframes[0], digests[keyframes[0].name])
    assert str(caught.value).startswith(f'cache: {path}: not a complete file of')
    assert f'{name}: got ' in str(caught.value)
    assert reason in str(caught.value)
    assert 'remove it' in str(caught.value)


@pytest.mark.attack(
    'an encoded keyframe in the cache that is a sparse file, whose tokens have gigabytes',
    'refused by its size before it is opened',
)
def test_a_cached_keyframe_has_a_largest_size(pipeline, keyframes, searched_folder, tmp_path):
    pipeline.reconfigure(in_torch())
    cache, digests = encode_all(pipeline, keyframes[:1], searched_folder, tmp_path)
    (path,) = tmp_path.glob('*.safetensors')
    shape = [6, 196, 1_000_000]
    num_bytes = 2 * 6 * 196 * 1_000_000
    header = {'visual_tokens': {'dtype': 'BF16', 'shape': shape, 'data_offsets': [0, num_bytes]}}
    text = json.dumps(header).encode()
    with path.open('wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        file.truncate(8 + len(text) + num_bytes)
    with pytest.raises(ConfigError, match=r'got 235\d+ bytes, allowed: at most \d{7}; remove it'):
        cache.load(keyframes[0], digests[keyframes[0].name])
