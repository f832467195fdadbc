"""What is loaded, and everything that is refused: place, manifest, fit, files, proof."""

from dataclasses import asdict, fields, replace
import hashlib
import json
import os
from pathlib import Path
import re
import shutil
import tempfile

from engine_helpers import (
    CPU,
    engine_folder,
    ignore_progress,
    load,
    plan_of,
    request_of,
)
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.untrained import write_untrained_checkpoint
from p2d_node.engine_build.build import build_engine
from p2d_node.engine_build.verify import verify_engine
from p2d_node.errors import BackendUnavailableError, EngineMismatchError
from p2d_node.vision_encoder.engine_checks import open_engine
from p2d_node.vision_encoder.machine import runtime_version, this_machine
from p2d_node.vision_encoder.manifest import (
    Artefact,
    DIGEST_KEY,
    EngineManifest,
    MANIFEST_FILE,
    read_manifest,
)
from p2d_node.vision_encoder.verifications import record_path
import pytest
from tiny_checkpoints import write_internvl
import torch

FIX_COMMAND = r'p2d (build|verify)-engine'


def refusal(engine_dir, checkpoint, backend='onnxruntime'):
    """The one line that says why an engine is not loaded."""
    with pytest.raises((EngineMismatchError, BackendUnavailableError)) as caught:
        load(engine_dir, checkpoint, backend)
    message = str(caught.value)
    assert '\n' not in message
    return message


def record_of(engine_dir):
    """The verification of the ONNX Runtime engine."""
    return record_path(read_manifest(engine_folder(engine_dir)))


def edit_manifest(folder, **changes):
    """Change fields of a manifest and write it with a valid digest."""
    manifest = replace(read_manifest(folder), **changes)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest.to_json()))


def changed(value):
    if isinstance(value, bool | int | float):
        return value + 1
    if isinstance(value, str):
        return f'{value}x'
    if isinstance(value, tuple):
        return (*value, '9.9')
    return {**value, 'x': Artefact('0', 1) if 'model.onnx' in value else 'x'}


def test_a_sound_engine_is_loaded_and_says_which_it_is(engine_dir, tiny_checkpoint):
    chosen = load(engine_dir, tiny_checkpoint, 'onnxruntime')
    folder = engine_folder(engine_dir)
    assert chosen.encoder.identity.startswith('onnxruntime ')
    assert chosen.encoder.identity.endswith(folder.name)
    assert chosen.refused == {}


@pytest.mark.parametrize('name', [item.name for item in fields(EngineManifest)])
def test_a_changed_field_of_the_manifest_is_noticed(engine_dir, tiny_checkpoint, name):
    folder = engine_folder(engine_dir)
    content = json.loads((folder / MANIFEST_FILE).read_text())
    value = content[name]
    content[name] = changed(tuple(value) if isinstance(value, list) else value)
    (folder / MANIFEST_FILE).write_text(json.dumps(content, default=asdict))
    assert re.search(FIX_COMMAND, refusal(engine_dir, tiny_checkpoint))


@pytest.mark.parametrize('name', [item.name for item in fields(EngineManifest)])
def test_a_forged_field_of_the_manifest_is_refused(engine_dir, tiny_checkpoint, name):
    folder = engine_folder(engine_dir)
    edit_manifest(folder, **{name: changed(getattr(read_manifest(folder), name))})
    assert re.search(FIX_COMMAND, refusal(engine_dir, tiny_checkpoint))


@pytest.mark.parametrize('name', [item.name for item in fields(EngineManifest)])
def test_a_field_of_another_type_is_refused(engine_dir, tiny_checkpoint, name):
    folder = engine_folder(engine_dir)
    manifest = read_manifest(folder)
    object.__setattr__(manifest, name, None)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest.to_json()))
    assert re.search(FIX_COMMAND, refusal(engine_dir, tiny_checkpoint))


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'num_views': '6'}, r'Expected `int`, got `str` - at `\$\.num_views`'),
        ({'num_views': True}, r'Expected `int`, got `bool` - at `\$\.num_views`'),
        ({'num_views': 0}, r'Expected `int` >= 1 - at `\$\.num_views`'),
        ({'hidden_size': 10**12}, r'Expected `int` <= 1048576 - at `\$\.hidden_size`'),
        ({'precision': 'int8'}, r"Invalid enum value 'int8' - at `\$\.precision`"),
        ({'input_kind': 'tensors'}, r"Invalid enum value 'tensors' - at `\$\.input_kind`"),
        ({'compute_capabilities': [8.6]}, r'Expected `str`, .*`\$\.compute_capabilities\[0\]`'),
        ({'artefacts': {'a': {'sha256': ''}}}, 'missing required field `num_bytes`'),
        ({'artefacts': {'a': {'sha256': '', 'num_bytes': 1, 'x': 1}}}, 'was changed after'),
        ({'unknown': 1}, 'was changed after the engine was built'),
        ({'format_version': 1}, 'has format 1, allowed: 2'),
    ],
)
def test_a_manifest_with_a_value_out_of_range_is_refused_by_name(built_engines, changes, reason):
    content = read_manifest(engine_folder(built_engines)).to_json()
    del content[DIGEST_KEY]
    check_forged({**content, **changes}, reason)


def test_a_manifest_without_a_field_is_refused(built_engines):
    content = read_manifest(engine_folder(built_engines)).to_json()
    for name in set(content) - {DIGEST_KEY}:
        rest = {key: value for key, value in content.items() if key not in (name, DIGEST_KEY)}
        check_forged(rest, f'missing required field `{name}`|was changed after|has format None')


def test_a_field_more_or_less_with_the_digest_of_before_is_refused(built_engines):
    content = read_manifest(engine_folder(built_engines)).to_json()
    without = {name: value for name, value in content.items() if name != 'gpu_name'}
    for changed in ({**content, 'x': 1}, without):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / MANIFEST_FILE).write_text(json.dumps(changed))
            with pytest.raises(EngineMismatchError, match='was changed after'):
                read_manifest(Path(folder))


def check_forged(content, reason):
    """Write a manifest with a valid digest; reading it must fail with `reason`."""
    canonical = json.dumps(content, sort_keys=True, separators=(',', ':'))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps({**content, DIGEST_KEY: digest})
        (Path(folder) / MANIFEST_FILE).write_text(text)
        with pytest.raises(EngineMismatchError, match=reason):
            read_manifest(Path(folder))


@pytest.mark.parametrize('name', ['model.onnx', 'model.onnx.data'])
@pytest.mark.parametrize('damage', ['truncated', 'one byte', 'missing', 'empty', 'longer'])
def test_a_damaged_file_is_refused(engine_dir, tiny_checkpoint, name, damage):
    path = engine_folder(engine_dir) / name
    content = bytearray(path.read_bytes())
    if damage == 'truncated':
        path.write_bytes(content[:-1])
    elif damage == 'one byte':
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == 'missing':
        path.unlink()
    else:
        path.write_bytes(b'' if damage == 'empty' else content + b'x')
    message = refusal(engine_dir, tiny_checkpoint)
    assert name in message
    assert 'rebuild it: p2d build-engine --backend onnxruntime' in message


@pytest.mark.parametrize('content', ['', '[]', '{}', '{"format_version": 2}', '[' * 100_000])
def test_a_broken_manifest_is_refused(engine_dir, tiny_checkpoint, content):
    (engine_folder(engine_dir) / MANIFEST_FILE).write_text(content)
    assert re.search(FIX_COMMAND, refusal(engine_dir, tiny_checkpoint))


def test_an_engine_of_another_model_is_refused(engine_dir, tiny_checkpoint, tmp_path):
    other = write_untrained_checkpoint(
        tmp_path / 'other' / 'tiny', image_size=126, patch_size=14, seed=1
    )
    message = refusal(engine_dir, other)
    assert 'vision weights: the engine has' in message


def test_an_engine_moved_into_another_models_folder_is_refused(
    engine_dir, tiny_checkpoint, tmp_path
):
    other = shutil.copytree(tiny_checkpoint, tmp_path / 'other')
    shutil.move(engine_dir / 'tiny', engine_dir / 'other')
    assert 'model: the engine has tiny, here it is other' in refusal(engine_dir, other)


def test_the_plan_of_another_engine_under_a_sound_manifest_is_refused(engine_dir, tiny_checkpoint):
    onnxruntime, rtx = (engine_folder(engine_dir, b) for b in ('onnxruntime', 'tensorrt_rtx'))
    shutil.copyfile(rtx / 'model.onnx.data', onnxruntime / 'model.onnx.data')
    assert 'model.onnx.data has' in refusal(engine_dir, tiny_checkpoint)


@pytest.mark.parametrize('which', ['engine_dir', 'model', 'engine', 'file'])
def test_what_others_may_write_is_refused(engine_dir, tiny_checkpoint, which):
    folder = engine_folder(engine_dir)
    path = {
        'engine_dir': engine_dir,
        'model': folder.parent,
        'engine': folder,
        'file': folder / 'model.onnx',
    }[which]
    path.chmod(path.stat().st_mode | 0o002)
    message = refusal(engine_dir, tiny_checkpoint)
    assert f'{path} can be written by other users' in message
    assert f'chmod go-w {path}' in message


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can give files away')
def test_what_belongs_to_another_user_is_refused(engine_dir, tiny_checkpoint):
    os.chown(engine_folder(engine_dir) / 'model.onnx', 12345, -1)
    assert 'model.onnx belongs to user 12345, allowed' in refusal(engine_dir, tiny_checkpoint)


@pytest.mark.parametrize('which', ['engine', 'file', 'model'])
def test_links_out_of_the_engine_folder_are_refused(engine_dir, tiny_checkpoint, tmp_path, which):
    folder = engine_folder(engine_dir)
    path = {'engine': folder, 'file': folder / 'model.onnx', 'model': folder.parent}[which]
    outside = tmp_path / 'outside'
    shutil.move(path, outside)
    path.symlink_to(outside)
    assert re.search('symbolic link|is a link', refusal(engine_dir, tiny_checkpoint))


def test_a_file_that_does_not_belong_there_is_refused(engine_dir, tiny_checkpoint):
    (engine_folder(engine_dir) / 'plugin.so').write_bytes(b'')
    assert 'plugin.so is not part of the engine' in refusal(engine_dir, tiny_checkpoint)


def test_an_engine_that_was_never_verified_is_loaded_only_when_a_parameter_says_so(
    engine_dir, tiny_checkpoint
):
    folder = engine_folder(engine_dir)
    record_of(engine_dir).unlink()
    message = refusal(engine_dir, tiny_checkpoint)
    assert 'never compared it with torch on this machine' in message
    assert f'p2d verify-engine {folder} --model {tiny_checkpoint}' in message
    load(engine_dir, tiny_checkpoint, 'onnxruntime', allow_unverified=True)
    assert verify_engine(engine_dir, folder, open_checkpoint(tiny_checkpoint), CPU).passed
    load(engine_dir, tiny_checkpoint, 'onnxruntime')


@pytest.mark.parametrize(
    ('field', 'value', 'reason'),
    [
        ('machine', '0' * 64, 'verified on another machine'),
        ('driver', '999.1', "verified with driver '999.1', here it is none"),
        ('manifest_sha256', '0' * 64, 'its verification is of another build'),
        ('passed', False, 'it failed its verification'),
        ('passed', 'yes', 'it failed its verification'),
    ],
)
def test_a_verification_counts_for_this_machine_and_this_build_alone(
    engine_dir, tiny_checkpoint, field, value, reason
):
    path = record_of(engine_dir)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    assert reason in refusal(engine_dir, tiny_checkpoint)


def test_a_broken_verification_is_no_verification(engine_dir, tiny_checkpoint):
    record_of(engine_dir).write_text('{')
    message = refusal(engine_dir, tiny_checkpoint)
    assert '.json is not valid JSON' in message
    assert 'p2d verify-engine' in message


def test_a_damaged_newer_engine_does_not_hide_a_sound_older_one(engine_dir, tiny_checkpoint):
    sound = engine_folder(engine_dir)
    newer = sound.with_name(re.sub(r'-\d{8}T', '-99991231T', sound.name))
    shutil.copytree(sound, newer)
    encoder = load(engine_dir, tiny_checkpoint, 'onnxruntime').encoder
    assert encoder.identity.endswith(sound.name)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine may run the engine')
def test_an_engine_for_gpus_is_refused_without_one(engine_dir, tiny_checkpoint):
    message = refusal(engine_dir, tiny_checkpoint, 'tensorrt_rtx')
    assert 'compute capability: the engine has 8.6, 8.9, here it is no GPU' in message
    assert '--compute-capability 8.6,8.9' in message


@pytest.mark.parametrize(
    ('machine_changes', 'reason'),
    [
        ({'gpu_name': 'Orin'}, 'GPU: the engine has NVIDIA RTX A6000, here it is Orin'),
        ({'driver': '1.2'}, 'driver: the engine has 550.54, here it is 1.2'),
        ({'compute_capability': '8.7'}, 'compute capability: the engine has 8.6, here it is 8.7'),
    ],
)
def test_an_engine_built_on_another_gpu_or_driver_is_refused(
    engine_dir, tiny_checkpoint, machine_changes, reason
):
    folder = engine_folder(engine_dir, 'tensorrt_rtx')
    built_on = replace(
        this_machine(CPU), gpu_name='NVIDIA RTX A6000', compute_capability='8.6', driver='550.54'
    )
    edit_manifest(
        folder,
        gpu_name=built_on.gpu_name,
        driver=built_on.driver,
        compute_capabilities=(built_on.compute_capability,),
    )
    options = {
        'runtime_version': runtime_version('tensorrt_rtx'),
        'allow_unverified': True,
    }
    request = request_of(tiny_checkpoint)
    open_engine(engine_dir, folder, request, built_on, **options)
    with pytest.raises(EngineMismatchError, match=reason):
        open_engine(engine_dir, folder, request, replace(built_on, **machine_changes), **options)


def test_another_version_of_the_runtime_is_refused(engine_dir, tiny_checkpoint):
    edit_manifest(engine_folder(engine_dir), runtime_version='1.0.0')
    assert 'runtime version: the engine has 1.0.0, here it is' in refusal(
        engine_dir, tiny_checkpoint
    )


def test_auto_takes_the_first_that_runs_and_says_why_the_others_do_not(
    engine_dir, tiny_checkpoint
):
    chosen = load(engine_dir, tiny_checkpoint, 'auto')
    assert chosen.encoder.identity.startswith('onnxruntime')
    assert set(chosen.refused) == {'tensorrt', 'tensorrt_rtx'}
    shutil.rmtree(engine_dir / 'tiny')
    chosen = load(engine_dir, tiny_checkpoint, 'auto')
    assert chosen.encoder.identity == 'torch float32 cpu'
    assert 'no onnxruntime engine of tiny in' in chosen.refused['onnxruntime']
    assert 'p2d build-engine --backend onnxruntime --model' in chosen.refused['onnxruntime']


def test_a_backend_that_is_named_is_never_replaced_by_another(engine_dir, tiny_checkpoint):
    shutil.rmtree(engine_dir / 'tiny')
    assert 'no onnxruntime engine of tiny' in refusal(engine_dir, tiny_checkpoint)


@pytest.fixture
def open_plan(engine_dir, tiny_checkpoint):
    """Opens the TensorRT-RTX engine as on a machine with a GPU that it was built for."""
    machine = replace(this_machine(CPU), gpu_name='NVIDIA RTX A6000', compute_capability='8.6')
    folder = engine_folder(engine_dir, 'tensorrt_rtx')

    def open_here():
        return open_engine(
            engine_dir,
            folder,
            request_of(tiny_checkpoint),
            machine,
            runtime_version=runtime_version('tensorrt_rtx'),
            allow_unverified=True,
        )

    open_here()
    return folder / 'engine.plan', open_here


@pytest.mark.slow
@pytest.mark.parametrize('damage', ['truncated', 'one byte', 'missing', 'of another model'])
def test_a_damaged_plan_never_reaches_the_runtime(open_plan, tmp_path, damage):
    path, open_here = open_plan
    content = bytearray(path.read_bytes())
    if damage == 'truncated':
        path.write_bytes(content[: len(content) // 2])
    elif damage == 'one byte':
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == 'missing':
        path.unlink()
    else:
        other = plan_of(write_internvl(tmp_path / 'other'), 'tensorrt_rtx')
        built = build_engine(other, tmp_path / 'engines', CPU, ignore_progress)
        shutil.copyfile(built.folder / 'engine.plan', path)
    with pytest.raises(EngineMismatchError, match=r'engine\.plan .*rebuild it: p2d build-engine'):
        open_here()


def test_a_plan_that_is_not_verified_on_this_machine_waits_for_that(
    engine_dir, tiny_checkpoint, open_plan
):
    path, _ = open_plan
    machine = replace(this_machine(CPU), gpu_name='NVIDIA RTX A6000', compute_capability='8.6')
    with pytest.raises(EngineMismatchError, match='never compared it with torch on this machine'):
        open_engine(
            engine_dir,
            path.parent,
            request_of(tiny_checkpoint),
            machine,
            runtime_version=runtime_version('tensorrt_rtx'),
            allow_unverified=False,
        )
