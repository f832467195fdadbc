"""Builds with the real runtimes: ONNX Runtime, and TensorRT-RTX ahead of time."""

from dataclasses import replace
import json
import multiprocessing
import shutil
import sys

from disk_limits import files_up_to
from engine_helpers import CPU, engine_folder, ignore_progress, load, plan_of
import onnx
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.weight_files import INDEX_FILE
from p2d_node.durable_files import write_json
from p2d_node.engine_build import export_folder
from p2d_node.engine_build.build import build_engine
from p2d_node.engine_build.cleaning import clean_engines
from p2d_node.engine_build.engine_folders import engine_lock
from p2d_node.engine_build.export_folder import export_model
from p2d_node.errors import BackendUnavailableError, ConfigError, EngineMismatchError
from p2d_node.language_model.families.registry import hash_vision_part
from p2d_node.vision_encoder.base import EncoderInput, FRAMES
from p2d_node.vision_encoder.engine_buffers import INPUT_NAME
from p2d_node.vision_encoder.engine_files import hash_file
from p2d_node.vision_encoder.engine_store import list_all_engines
from p2d_node.vision_encoder.manifest import Artefact, MANIFEST_FILE, read_manifest
from p2d_node.vision_encoder.onnxruntime_encoder import OnnxruntimeVisionEncoder
from p2d_node.whole_folders import LOCK_FILE, MARKER_FILE
import pytest
from safetensors.torch import load_file, save_file
from tiny_checkpoints import write_internvl, write_qwen2_5_vl, write_qwen3_vl
import torch


def test_an_engine_folder_holds_all_that_it_was_made_of(built_engines):
    shared = {'model.onnx', 'model.onnx.data'}
    onnxruntime = read_manifest(engine_folder(built_engines, 'onnxruntime'))
    assert set(onnxruntime.artefacts) == shared
    assert (onnxruntime.num_tokens, onnxruntime.hidden_size) == (81, 64)
    rtx = read_manifest(engine_folder(built_engines, 'tensorrt_rtx'))
    assert set(rtx.artefacts) == shared | {'engine.plan'}
    assert rtx.compute_capabilities == ('8.6', '8.9')
    assert rtx.artefacts['engine.plan'].num_bytes > 10_000


def test_onnx_runtime_computes_what_torch_computes(built_engines, tiny_checkpoint):
    engine = load(built_engines, tiny_checkpoint, 'onnxruntime').encoder
    reference = load(built_engines, tiny_checkpoint, 'torch').encoder
    pixel_values = torch.randn(6, 3, 126, 126, generator=torch.Generator().manual_seed(3))
    expected, actual = reference.encode(pixel_values), engine.encode(pixel_values)
    assert (actual - expected).abs().max() < 1e-4
    assert engine.encode(pixel_values[:4]).shape == (4, 81, 64)


@pytest.mark.slow
def test_the_same_export_is_made_once(tiny_checkpoint, tmp_path):
    plan = plan_of(tiny_checkpoint, 'onnxruntime').export
    first = export_model(plan, tmp_path, ignore_progress)
    again = export_model(plan, tmp_path, ignore_progress)
    assert again.folder == first.folder
    (first.folder / 'model.onnx').write_bytes(b'damaged')
    other = export_model(plan, tmp_path, ignore_progress)
    assert other.folder != first.folder


@pytest.mark.attack(
    'an export whose weights were changed, with a manifest that agrees, copied into the engines',
    'each export that is found is compared with torch again; one that differs is not built from',
)
@pytest.mark.slow
@pytest.mark.parametrize('name', ['model.onnx', 'model.onnx.data'])
def test_an_export_that_was_copied_in_is_compared_again(tiny_checkpoint, tmp_path, name):
    plan = plan_of(tiny_checkpoint, 'onnxruntime').export
    genuine = export_model(plan, tmp_path, ignore_progress)
    assert export_model(plan, tmp_path, ignore_progress).verification.passed
    forged = genuine.folder / name
    forged.write_bytes(bytes(forged.stat().st_size))
    artefact = Artefact(hash_file(forged), forged.stat().st_size)
    write_manifest(genuine.folder, artefacts={**genuine.manifest.artefacts, name: artefact})
    other = export_model(plan, tmp_path, ignore_progress)
    assert other.folder != genuine.folder
    assert other.verification.passed


@pytest.mark.attack(
    'an export, copied into the engines, whose manifest also names a plan and a timing cache',
    'it is not built from: an export has model.onnx and model.onnx.data only',
)
@pytest.mark.parametrize('name', ['engine.plan', 'timing.cache', 'other'])
def test_an_export_with_files_of_an_engine_is_not_used(
    engine_dir, tiny_checkpoint, monkeypatch, name
):
    class NewExportError(Exception):
        pass

    def begin_export(*_):
        raise NewExportError

    monkeypatch.setattr(export_folder, 'export_onnx', begin_export)
    plan = plan_of(tiny_checkpoint, 'onnxruntime').export
    genuine = export_model(plan, engine_dir, ignore_progress)
    (genuine.folder / name).write_bytes(b'forged')
    artefact = Artefact(hash_file(genuine.folder / name), 6)
    write_manifest(genuine.folder, artefacts={**genuine.manifest.artefacts, name: artefact})
    with pytest.raises(NewExportError):
        export_model(plan, engine_dir, ignore_progress)


@pytest.mark.slow
def test_an_export_is_not_called_compared_where_it_cannot_be(
    tiny_checkpoint, tmp_path, monkeypatch
):
    plan = plan_of(tiny_checkpoint, 'onnxruntime').export
    genuine = export_model(plan, tmp_path, ignore_progress)
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    found = export_model(plan, tmp_path, ignore_progress)
    assert (found.folder, found.verification) == (genuine.folder, None)


def test_operators_of_an_export_are_checked_where_it_cannot_be_compared(
    tiny_checkpoint, tmp_path, monkeypatch
):
    plan = plan_of(tiny_checkpoint, 'onnxruntime').export
    genuine = export_model(plan, tmp_path, ignore_progress)
    forged = genuine.folder / 'model.onnx'
    model = onnx.load(forged, load_external_data=False)
    model.graph.node.append(onnx.helper.make_node('Bernoulli', [INPUT_NAME], ['unused']))
    onnx.save(model, forged)
    artefact = Artefact(hash_file(forged), forged.stat().st_size)
    write_manifest(genuine.folder, artefacts={**genuine.manifest.artefacts, forged.name: artefact})
    monkeypatch.setattr(export_folder, '_check_export', lambda *_: None)  # as of bf16
    assert export_model(plan, tmp_path, ignore_progress).folder != genuine.folder


def test_other_vision_weights_are_another_model_but_renamed_files_are_not(
    tiny_checkpoint, tmp_path
):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / 'tiny')
    original = hash_vision_part(open_checkpoint(tiny_checkpoint))
    shard = 'model-00001-of-00001.safetensors'
    (copy / 'model.safetensors').rename(copy / shard)
    names = load_file(copy / shard)
    write_json(copy / INDEX_FILE, {'weight_map': dict.fromkeys(names, shard)})
    assert hash_vision_part(open_checkpoint(copy)) == original
    weights = load_file(copy / shard)
    name = next(n for n in weights if 'vision_tower' in n)
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, copy / 'model-00001-of-00001.safetensors', {'format': 'pt'})
    assert hash_vision_part(open_checkpoint(copy)) != original


def test_weights_of_the_language_model_do_not_count(tiny_checkpoint, tmp_path):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / 'tiny')
    weights = load_file(copy / 'model.safetensors')
    weights[next(n for n in weights if 'lm_head' in n)].zero_()
    save_file(weights, copy / 'model.safetensors', {'format': 'pt'})
    same = (hash_vision_part(open_checkpoint(f)) for f in (copy, tiny_checkpoint))
    assert len(set(same)) == 1


@pytest.mark.parametrize(
    ('backend', 'changes', 'reason'),
    [
        ('openvino', {}, "backend: got 'openvino', allowed: tensorrt, tensorrt_rtx"),
        ('onnxruntime', {'precision': 'int8'}, "precision: got 'int8', allowed: fp32"),
        ('onnxruntime', {'precision': 'bf16'}, "precision: got 'bf16', allowed for onnxruntime"),
        ('onnxruntime', {'num_views': 0}, 'num_views: got 0, allowed: 1 to 64'),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(tiny_checkpoint, backend, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        plan_of(tiny_checkpoint, backend, **changes)


def test_ahead_of_time_is_only_for_tensorrt_rtx(tiny_checkpoint):
    options = plan_of(tiny_checkpoint, 'tensorrt_rtx').options
    with pytest.raises(ConfigError, match='only tensorrt_rtx builds ahead of time'):
        replace(plan_of(tiny_checkpoint, 'onnxruntime'), options=options)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU to build for')
def test_without_a_gpu_the_target_must_be_named(tiny_checkpoint, tmp_path):
    plan = plan_of(tiny_checkpoint, 'tensorrt_rtx')
    plan = replace(plan, options=replace(plan.options, compute_capabilities=()))
    with pytest.raises(
        ConfigError, match='compute_capability: got none, but this machine has no GPU'
    ):
        build_engine(plan, tmp_path, CPU, ignore_progress)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('capability', ['8.7', '86', '8..6'])
def test_a_gpu_generation_that_cannot_be_built_for_is_refused_before_the_export(
    tiny_checkpoint, tmp_path, capability
):
    plan = plan_of(tiny_checkpoint, 'tensorrt_rtx')
    options = replace(plan.options, compute_capabilities=('8.6', capability))
    reason = rf"got '{capability}', allowed with tensorrt_rtx .*: 7\.5, 8\.0"
    with pytest.raises(ConfigError, match=reason):
        build_engine(replace(plan, options=options), tmp_path, CPU, ignore_progress)
    assert not any(tmp_path.iterdir())


def test_a_runtime_that_is_not_installed_is_named(tiny_checkpoint, tmp_path):
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(BackendUnavailableError, match='tensorrt does not load: No module'):
            build_engine(plan_of(tiny_checkpoint, 'tensorrt'), tmp_path, CPU, ignore_progress)
    else:
        pytest.skip('TensorRT is installed here')


def test_an_engine_that_does_not_compute_what_torch_does_is_not_kept(
    engine_dir, tiny_checkpoint, monkeypatch
):
    before = list_all_engines(engine_dir)
    encode = OnnxruntimeVisionEncoder.encode
    wrong = lambda self, frames: encode(self, frames).roll(1, dims=1)  # noqa: E731
    monkeypatch.setattr(OnnxruntimeVisionEncoder, 'encode', wrong)
    plan = plan_of(tiny_checkpoint, 'onnxruntime')
    with pytest.raises(EngineMismatchError, match='does not compute what torch does: smallest'):
        build_engine(plan, engine_dir, CPU, ignore_progress)
    assert list_all_engines(engine_dir) == before


def _hold_lock(engine_dir, is_held, may_end):
    with engine_lock(engine_dir):
        is_held.set()
        may_end.wait(30)


@pytest.mark.slow
def test_two_builds_in_one_folder_do_not_run_at_once(tiny_checkpoint, tmp_path):
    context = multiprocessing.get_context('spawn')
    is_held, may_end = context.Event(), context.Event()
    other = context.Process(target=_hold_lock, args=(tmp_path, is_held, may_end))
    other.start()
    try:
        assert is_held.wait(60)
        with pytest.raises(ConfigError, match='another build works in'):
            export_model(plan_of(tiny_checkpoint, 'onnxruntime').export, tmp_path, ignore_progress)
    finally:
        may_end.set()
        other.join(30)


def test_cleaning_keeps_the_newest_of_each_kind(engine_dir, tiny_checkpoint):
    plan = plan_of(tiny_checkpoint, 'onnxruntime')
    newer = build_engine(plan, engine_dir, CPU, ignore_progress).folder
    unfinished = engine_dir / 'tiny' / '.building-1234'
    unfinished.mkdir()
    (unfinished / MARKER_FILE).touch()
    older = {f for f in engine_dir.glob('tiny/onnxruntime-*') if f != newer}
    assert set(clean_engines(engine_dir, 1, dry_run=True)) == older
    assert unfinished.is_dir()
    assert set(clean_engines(engine_dir, 1)) == older
    assert not unfinished.exists()
    kinds = sorted(f.name.split('-')[0] for f in list_all_engines(engine_dir))
    assert kinds == ['onnx', 'onnx', 'onnxruntime', 'tensorrt_rtx']
    assert newer.is_dir()
    with pytest.raises(ConfigError, match='keep: got 0'):
        clean_engines(engine_dir, 0)


@pytest.mark.slow
def test_cleaning_keeps_the_newest_for_every_number_of_cameras(tiny_checkpoint, tmp_path):
    six, two = (
        export_model(
            plan_of(tiny_checkpoint, 'onnxruntime', num_views=num_views).export,
            tmp_path,
            ignore_progress,
        ).folder
        for num_views in (6, 2)
    )
    assert clean_engines(tmp_path, 1) == []
    # Without its manifest nothing says that it is an engine.
    (six / MANIFEST_FILE).unlink()
    assert clean_engines(tmp_path, 1) == []
    assert set(list_all_engines(tmp_path)) == {six, two}


def test_cleaning_counts_no_engine_whose_manifest_is_a_copy(engine_dir, tiny_checkpoint):
    genuine = engine_folder(engine_dir)
    copy = genuine.with_name(genuine.name.replace('-20', '-99'))
    copy.mkdir()
    shutil.copyfile(genuine / MANIFEST_FILE, copy / MANIFEST_FILE)
    assert clean_engines(engine_dir, 1) == []
    load(engine_dir, tiny_checkpoint, 'onnxruntime')


@pytest.mark.attack(
    'an engine folder of others that holds a copy of a verified engine, which is cleaned',
    'the verification of the original stays',
)
def test_cleaning_another_folder_keeps_the_records_of_this_one(engine_dir, tiny_checkpoint):
    other = engine_dir.parent / 'other'
    shutil.copytree(engine_dir, other)
    build_engine(plan_of(tiny_checkpoint, 'onnxruntime'), other, CPU, ignore_progress)
    assert clean_engines(other, 1)
    load(engine_dir, tiny_checkpoint, 'onnxruntime')


def write_manifest(folder, **changes):
    """Change the manifest of an engine, so that it agrees with itself."""
    manifest = replace(read_manifest(folder), **changes)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest.to_json()))


@pytest.mark.attack(
    'a folder beside a verified engine with a newer name and a manifest that agrees with itself',
    'clean-engines keeps the verified engine: only what was verified here makes it old',
)
@pytest.mark.parametrize('is_whole', [True, False])
def test_cleaning_keeps_a_verified_engine(engine_dir, tiny_checkpoint, is_whole):
    genuine = engine_folder(engine_dir)
    forged = genuine.with_name(genuine.name.replace('-20', '-99'))
    shutil.copytree(genuine, forged)
    write_manifest(forged, key=forged.name)
    if not is_whole:
        for path in forged.glob('model*'):
            path.unlink()
        write_manifest(forged, artefacts={})
    assert clean_engines(engine_dir, 1) == []
    load(engine_dir, tiny_checkpoint, 'onnxruntime')


@pytest.mark.attack(
    'a folder beside an export with a newer name and a manifest that agrees with itself',
    'clean-engines keeps the export that a verified engine was built of',
)
@pytest.mark.parametrize('claims_its_hashes', [False, True])
def test_cleaning_keeps_the_export_of_a_verified_engine(engine_dir, claims_its_hashes):
    artefacts = read_manifest(engine_folder(engine_dir)).artefacts
    exports = engine_dir.glob('*/onnx-*')
    genuine = next(f for f in exports if read_manifest(f).artefacts == artefacts)
    forged = genuine.with_name(genuine.name.replace('-20', '-99'))
    shutil.copytree(genuine, forged)
    noise = bytes(artefacts['model.onnx'].num_bytes)
    (forged / 'model.onnx').write_bytes(noise)
    changed = dict(artefacts)
    if not claims_its_hashes:
        changed['model.onnx'] = Artefact(hash_file(forged / 'model.onnx'), len(noise))
    write_manifest(forged, key=forged.name, artefacts=changed)
    assert clean_engines(engine_dir, 1) == []


def test_an_export_without_space_is_one_line(
    exports_in_their_own_process, tiny_checkpoint, tmp_path
):
    plan = plan_of(tiny_checkpoint, 'onnxruntime').export
    reason = 'engine_dir: .* cannot be written: .*; check its free space'
    with files_up_to(10_000), pytest.raises(ConfigError, match=reason):
        export_model(plan, tmp_path, ignore_progress)
    assert not list(tmp_path.glob('tiny/*'))


@pytest.mark.parametrize('lacks', ['artefacts', 'file', 'bytes'])
def test_cleaning_counts_no_export_without_its_files(engine_dir, lacks):
    genuine = sorted(engine_dir.glob('*/onnx-*'))[0]
    newer = genuine.with_name(genuine.name.replace('-20', '-99'))
    shutil.copytree(genuine, newer)
    write_manifest(newer, key=newer.name)
    if lacks == 'artefacts':
        write_manifest(newer, artefacts={})
    elif lacks == 'file':
        (newer / 'model.onnx').unlink()
    else:
        (newer / 'model.onnx').write_bytes(b'')
    assert clean_engines(engine_dir, 1) == []


@pytest.mark.attack(
    'the manifest of a verified engine, copied with its files under another model',
    'clean-engines does not remove the verification of the original',
)
def test_cleaning_keeps_the_record_of_an_original(engine_dir, tiny_checkpoint):
    genuine = engine_folder(engine_dir)
    other = engine_dir / 'other'
    newer = other / genuine.name.replace('-20', '-99')
    shutil.copytree(genuine, other / genuine.name)
    shutil.copytree(genuine, newer)
    write_manifest(newer, key=newer.name, model_name='other')
    assert clean_engines(engine_dir, 1) == []
    load(engine_dir, tiny_checkpoint, 'onnxruntime')


def test_cleaning_removes_nothing_that_only_looks_like_an_engine(tmp_path):
    engine_dir, photos = tmp_path / 'engines', tmp_path / 'photos'
    for name in ('holiday-2024-01', 'holiday-2024-02', '.building-summer'):
        (photos / name).mkdir(parents=True)
        (photos / name / 'beach.jpg').touch()
        (engine_dir / 'trips' / name).mkdir(parents=True)
    (engine_dir / 'photos').symlink_to(photos)
    (engine_dir / 'trips' / 'onnxruntime-a-2024-01').symlink_to(photos)
    before = sorted(tmp_path.rglob('*'))
    assert clean_engines(engine_dir, 1) == []
    assert sorted(path for path in tmp_path.rglob('*') if path.name != LOCK_FILE) == before


@pytest.mark.attack(
    'a link among the engines, with the name of a model, leads to a folder of the user',
    'nothing is built there',
)
def test_no_engine_is_written_through_a_link(tiny_checkpoint, tmp_path):
    engine_dir, photos = tmp_path / 'engines', tmp_path / 'photos'
    engine_dir.mkdir()
    photos.mkdir()
    (engine_dir / tiny_checkpoint.name).symlink_to(photos)
    with pytest.raises(ConfigError, match='a symbolic or hard link'):
        export_model(plan_of(tiny_checkpoint, 'onnxruntime').export, engine_dir, ignore_progress)
    assert list(photos.iterdir()) == []


@pytest.mark.slow
def test_cleaning_does_not_take_a_damaged_engine_for_a_newer_one(tiny_checkpoint, tmp_path):
    plan = plan_of(tiny_checkpoint, 'onnxruntime').export
    sound = export_model(plan, tmp_path, ignore_progress).folder
    newer = sound.with_name(sound.name.replace('-20', '-30'))
    shutil.copytree(sound, newer)
    (newer / MANIFEST_FILE).write_text('{')
    assert clean_engines(tmp_path, 1) == []


@pytest.mark.slow
@pytest.mark.parametrize('input_kind', ['frames', 'pixel_values'])
def test_internvl_is_exported_with_its_pixel_shuffle(tmp_path, input_kind):
    checkpoint = write_internvl(tmp_path / 'internvl')
    input_spec = EncoderInput(FRAMES, 90, 160) if input_kind == FRAMES else EncoderInput()
    plan = plan_of(checkpoint, 'onnxruntime', input_spec=input_spec)
    built = build_engine(plan, tmp_path / 'engines', CPU, ignore_progress)
    assert built.verification.min_cosine > 0.99999
    assert built.verification.kept_in_common > 0.9
    assert (built.manifest.num_tokens, built.manifest.hidden_size) == (16, 48)
    assert built.manifest.processing['fit'] == 'squash'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('write', 'input_spec', 'hidden_size'),
    [
        (write_qwen2_5_vl, EncoderInput(), 48),
        (write_qwen3_vl, EncoderInput(FRAMES, 90, 160), 3 * 48),  # two deepstack layers
    ],
)
def test_qwen_vl_is_built_ahead_of_time_for_tensorrt(tmp_path, write, input_spec, hidden_size):
    plan = plan_of(write(tmp_path / 'qwen'), 'tensorrt_rtx', input_spec=input_spec)
    built = build_engine(plan, tmp_path / 'engines', CPU, ignore_progress)
    assert (built.manifest.num_tokens, built.manifest.hidden_size) == (18, hidden_size)
    assert (built.folder / 'engine.plan').stat().st_size > 100_000
