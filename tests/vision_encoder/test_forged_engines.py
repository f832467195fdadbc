"""Engines that would pass for proven: forged, swapped, or with a proof of their own."""

from dataclasses import replace
from functools import partial
import json
import shutil
import threading
from unittest.mock import Mock

from engine_helpers import CPU, engine_folder, load, plan_of, request_of
from google.protobuf.internal.encoder import _VarintBytes
import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
import onnxruntime
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.engine_build import build
from p2d_node.engine_build.export_folder import hash_artefacts
from p2d_node.engine_build.reference import compute_reference
from p2d_node.engine_build.verify import compare_tokens, THRESHOLDS, verify_engine
from p2d_node.errors import EngineMismatchError
from p2d_node.vision_encoder import engine_checks
from p2d_node.vision_encoder.engine_checks import open_engine
from p2d_node.vision_encoder.machine import runtime_version, this_machine
from p2d_node.vision_encoder.manifest import (
    Artefact,
    MANIFEST_FILE,
    ONNX_DATA_FILE,
    ONNX_FILE,
    read_manifest,
    TIMING_CACHE_FILE,
)
from p2d_node.vision_encoder.onnx_graph import checked_model
from p2d_node.vision_encoder.onnxruntime_encoder import OnnxruntimeVisionEncoder
from p2d_node.vision_encoder.verifications import record_path, write_record
import pytest
from safetensors.torch import save_file
import torch

PIXELS = (6, 3, 126, 126)
TOKENS = (6, 81, 64)


def noise_model(location=None, tokens=None):
    """An ONNX model of the right shapes that ignores its input; its weights lie in `location`."""
    noise = np.random.default_rng(0).standard_normal(TOKENS).astype(np.float32)
    noise = noise if tokens is None else tokens
    weights = numpy_helper.from_array(noise, 'noise')
    if location is not None:
        weights.ClearField('raw_data')
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key='location', value=location)
    graph = helper.make_graph(
        [
            helper.make_node('ReduceMean', ['frames'], ['mean'], keepdims=0),
            helper.make_node('Mul', ['mean', 'zero'], ['nothing']),
            helper.make_node('Add', ['noise', 'nothing'], ['visual_tokens']),
        ],
        'forged',
        [helper.make_tensor_value_info('frames', TensorProto.FLOAT, PIXELS)],
        [helper.make_tensor_value_info('visual_tokens', TensorProto.FLOAT, TOKENS)],
        [weights, numpy_helper.from_array(np.float32(0.0), 'zero')],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    return model, noise


def forge(folder, model, **files):
    """Replace the model of an engine, with a valid manifest."""
    for path in folder.iterdir():
        path.unlink() if path.name not in (MANIFEST_FILE, ONNX_DATA_FILE) else None
    onnx.save(model, folder / 'model.onnx')
    for name, content in files.items():
        (folder / name.replace('_', '.')).write_bytes(content)
    manifest = read_manifest(folder)
    (folder / MANIFEST_FILE).unlink()
    manifest = replace(manifest, artefacts=hash_artefacts(folder))
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest.to_json()))


@pytest.mark.attack(
    'An engine of other weights, for a checkpoint with a feature that is larger than all others',
    'fails its verification: features are also compared less their mean and scaled alike',
)
@pytest.mark.parametrize('precision', THRESHOLDS)
def test_a_large_feature_hides_no_others(precision):
    threshold = THRESHOLDS[precision]
    expected, other = torch.randn(2, *TOKENS, generator=torch.Generator().manual_seed(0))
    for tokens in (expected, other):
        tokens[..., 0] += 1e5
    compared = compare_tokens(expected, other, threshold)
    assert compared.min_cosine > threshold.min_cosine
    assert compared.max_relative_difference < threshold.max_relative_difference
    assert not compared.passed
    formats = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
    expected[..., 0] -= 9.9e4  # as large as some features of published models
    assert compare_tokens(expected, expected.to(formats[precision]).float(), threshold).passed


@pytest.mark.attack(
    'An engine that is copied in brings a timing cache, which TensorRT reads without a check',
    'only that of an engine which this user has verified here is given to TensorRT',
)
def test_the_timing_cache_of_an_unverified_engine_is_not_used(engine_dir, tiny_checkpoint):
    folder = engine_folder(engine_dir, 'tensorrt_rtx')
    (folder / TIMING_CACHE_FILE).write_bytes(b'cache')
    manifest = read_manifest(folder)
    (folder / MANIFEST_FILE).unlink()
    manifest = replace(manifest, artefacts=hash_artefacts(folder))
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest.to_json()))
    plan, machine = plan_of(tiny_checkpoint, 'tensorrt_rtx'), this_machine(CPU)
    found = partial(
        build._newest_timing_cache, plan, engine_dir, manifest.runtime_version, machine
    )
    assert found() == b''
    write_record(read_manifest(folder), machine, {'passed': True})
    assert found() == b'cache'


def test_tokens_that_are_all_zero_are_compared():
    assert not compare_tokens(torch.zeros(TOKENS), torch.zeros(TOKENS), THRESHOLDS['fp32']).passed


@pytest.mark.attack(
    'An engine that emits noise, with a manifest and a reference that agree with it',
    'fails its verification: torch computes the reference here, from new pictures and the local '
    'checkpoint; limits come from the code',
)
def test_a_forged_engine_fails_its_verification(engine_dir, tiny_checkpoint, tmp_path):
    folder = engine_folder(engine_dir)
    model, noise = noise_model()
    save_file(
        {'frames': torch.zeros(PIXELS), 'visual_tokens': torch.from_numpy(noise)},
        tmp_path / 'reference.safetensors',
    )
    reference = (tmp_path / 'reference.safetensors').read_bytes()
    forge(folder, model, reference_safetensors=reference)
    verification = verify_engine(engine_dir, folder, open_checkpoint(tiny_checkpoint), CPU)
    assert not verification.passed
    assert verification.finite
    with pytest.raises(EngineMismatchError, match='it failed its verification'):
        load(engine_dir, tiny_checkpoint, 'onnxruntime')


def test_an_engine_that_knows_the_tokens_of_some_pictures_fails_its_verification(
    engine_dir, tiny_checkpoint
):
    folder = engine_folder(engine_dir)
    known = compute_reference(plan_of(tiny_checkpoint, 'onnxruntime').export, seed=0)
    forge(folder, noise_model(tokens=known.visual_tokens.numpy())[0])
    assert not verify_engine(engine_dir, folder, open_checkpoint(tiny_checkpoint), CPU).passed


@pytest.mark.attack(
    'A proof that is copied in with an engine',
    'does not count: verifications lie in a folder of the user who verified',
)
def test_a_proof_that_comes_with_an_engine_does_not_count(
    engine_dir, tiny_checkpoint, tmp_path, monkeypatch
):
    folder = engine_folder(engine_dir)
    record = record_path(read_manifest(folder))
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path / 'another user'))
    with pytest.raises(EngineMismatchError, match='this user never compared it with torch'):
        load(engine_dir, tiny_checkpoint, 'onnxruntime')
    shutil.copyfile(record, folder / 'verification.json')
    with pytest.raises(EngineMismatchError, match='this user never compared it with torch'):
        load(engine_dir, tiny_checkpoint, 'onnxruntime')
    with pytest.raises(EngineMismatchError, match=r'verification\.json is not part of the engine'):
        load(engine_dir, tiny_checkpoint, 'onnxruntime', allow_unverified=True)


@pytest.mark.attack(
    'an engine that nobody verified, with files as large as the memory',
    'refused before one of its files is opened; also if it is allowed, no file is sparse',
)
@pytest.mark.parametrize('content', [b'', b'x' * 4096])
def test_an_unverified_engine_is_not_read(engine_dir, tiny_checkpoint, monkeypatch, content):
    folder = engine_folder(engine_dir)
    with (folder / ONNX_DATA_FILE).open('wb') as file:
        file.write(content)
        file.truncate(64 << 20)
    huge = Artefact(sha256='0' * 64, num_bytes=64 << 20)
    manifest = read_manifest(folder)
    manifest = replace(manifest, artefacts={**manifest.artefacts, ONNX_DATA_FILE: huge})
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest.to_json()))
    with pytest.raises(EngineMismatchError, match=r'onnx\.data has .* are on the disk; copy it'):
        load(engine_dir, tiny_checkpoint, 'onnxruntime', allow_unverified=True)
    monkeypatch.setattr(engine_checks, 'read_engine_files', None)
    with pytest.raises(EngineMismatchError, match='this user never compared it with torch'):
        load(engine_dir, tiny_checkpoint, 'onnxruntime')


def test_an_engine_has_few_files(engine_dir, tiny_checkpoint):
    folder = engine_folder(engine_dir)
    manifest = read_manifest(folder)
    more = {f'f{i}': Artefact(sha256='0' * 64, num_bytes=0) for i in range(7)}
    manifest = replace(manifest, artefacts={**manifest.artefacts, **more})
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest.to_json()))
    with pytest.raises(EngineMismatchError, match='names 9 files, allowed: up to 8'):
        load(engine_dir, tiny_checkpoint, 'onnxruntime', allow_unverified=True)


def test_a_proof_that_others_can_write_does_not_count(engine_dir, tiny_checkpoint):
    record = record_path(read_manifest(engine_folder(engine_dir)))
    record.chmod(0o666)
    with pytest.raises(EngineMismatchError, match='can be written by other users'):
        load(engine_dir, tiny_checkpoint, 'onnxruntime')
    record.chmod(0o644)
    moved = record.rename(record.with_name('elsewhere.json'))
    record.symlink_to(moved)
    with pytest.raises(EngineMismatchError, match='is a link'):
        load(engine_dir, tiny_checkpoint, 'onnxruntime')


def test_an_engine_of_another_checkpoint_is_not_verified(engine_dir, tiny_checkpoint, tmp_path):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / 'copy' / 'tiny')
    content = bytearray((copy / 'model.safetensors').read_bytes())
    content[-1] ^= 1  # of the vision tower, whose weights come last
    (copy / 'model.safetensors').write_bytes(content)
    folder = engine_folder(engine_dir)
    with pytest.raises(EngineMismatchError, match='vision weights: the engine has') as caught:
        verify_engine(engine_dir, folder, open_checkpoint(copy), CPU)
    assert '--model FOLDER' in str(caught.value)


@pytest.mark.attack(
    'The engine folder is swapped between the check and the load',
    'no effect: the bytes that were hashed are those that are loaded',
)
def test_what_was_checked_is_what_is_loaded(engine_dir, tiny_checkpoint):
    folder = engine_folder(engine_dir)
    expected = load(engine_dir, tiny_checkpoint, 'onnxruntime').encoder
    opened = open_engine(
        engine_dir,
        folder,
        request_of(tiny_checkpoint),
        this_machine(CPU),
        runtime_version=runtime_version('onnxruntime'),
        allow_unverified=False,
    )
    shutil.rmtree(folder)
    pixels = torch.rand(PIXELS)
    encoder = OnnxruntimeVisionEncoder(
        opened.manifest, opened.files, dtype=torch.float32, device=CPU
    )
    assert torch.equal(encoder.encode(pixels), expected.encode(pixels))


def test_an_engine_that_is_swapped_all_the_time_is_loaded_whole_or_not_at_all(
    engine_dir, tiny_checkpoint
):
    folder = engine_folder(engine_dir)
    forged, aside = engine_dir / 'forged', engine_dir / 'aside'
    shutil.copytree(folder, forged)
    forge(forged, noise_model()[0])
    pixels = torch.rand(PIXELS)
    expected = load(engine_dir, tiny_checkpoint, 'onnxruntime').encoder.encode(pixels)
    ends = threading.Event()

    def swap():
        while not ends.is_set():
            folder.rename(aside)
            forged.rename(folder)
            folder.rename(forged)
            aside.rename(folder)

    swapping = threading.Thread(target=swap)
    swapping.start()
    num_loaded = 0
    try:
        for _ in range(40):
            try:
                encoder = load(engine_dir, tiny_checkpoint, 'onnxruntime').encoder
            except EngineMismatchError:
                continue
            assert torch.equal(encoder.encode(pixels), expected)
            num_loaded += 1
    finally:
        ends.set()
        swapping.join(10)
    assert num_loaded < 40


@pytest.mark.attack(
    'A folder above the engine folder can be written by others',
    'refused: every folder up to / belongs to root or the user, and others cannot write it',
)
def test_a_folder_above_that_others_can_write_is_refused(engine_dir, tiny_checkpoint, tmp_path):
    load(engine_dir, tiny_checkpoint, 'onnxruntime', allow_unverified=True)
    tmp_path.chmod(0o777)
    with pytest.raises(EngineMismatchError, match='can be written by other users') as caught:
        load(engine_dir, tiny_checkpoint, 'onnxruntime', allow_unverified=True)
    assert f'chmod go-w {tmp_path};' in str(caught.value)
    tmp_path.chmod(0o1777)  # only owners can rename their entries
    load(engine_dir, tiny_checkpoint, 'onnxruntime', allow_unverified=True)


def outside_tensor(name, location, dims):
    """A tensor whose values lie in the file `location`."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key='location', value=location)
    return tensor


@pytest.mark.parametrize(
    ('operator', 'location'),
    [('Constant', 'w.bin'), ('ConstantOfShape', 'w.bin'), ('ConstantOfShape', ONNX_DATA_FILE)],
)
def test_weights_of_a_node_in_the_working_folder_are_not_loaded(
    engine_dir, tiny_checkpoint, tmp_path, monkeypatch, operator, location
):
    model, _ = noise_model()
    graph = model.graph
    graph.node[-1].output[0] = 'own'
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), 'one'))
    node = helper.make_node(operator, [] if operator == 'Constant' else ['one'], ['more'])
    node.attribute.append(helper.make_attribute('value', outside_tensor('q', location, (1,))))
    graph.node.extend([node, helper.make_node('Add', ['own', 'more'], ['visual_tokens'])])
    forge(engine_folder(engine_dir), model)
    monkeypatch.chdir(tmp_path)
    (tmp_path / location).write_bytes(bytes(4))
    with pytest.raises(EngineMismatchError, match='onnxruntime: '):
        load(engine_dir, tiny_checkpoint, 'onnxruntime', allow_unverified=True)


@pytest.mark.attack(
    'An engine whose weights are in a file outside of its folder',
    'refused by the runtime: it gets all bytes from memory and looks for no file',
)
@pytest.mark.parametrize('location', ['other.data', '../other.data', '/tmp/other.data'])
def test_weights_in_another_file_are_not_loaded(
    engine_dir, tiny_checkpoint, tmp_path, monkeypatch, location
):
    model, noise = noise_model(location)
    folder = engine_folder(engine_dir)
    forge(folder, model)
    monkeypatch.chdir(tmp_path)
    for parent in (tmp_path, tmp_path.parent, folder.parent):
        (parent / 'other.data').write_bytes(noise.tobytes())
    with pytest.raises(EngineMismatchError, match='onnxruntime: '):
        load(engine_dir, tiny_checkpoint, 'onnxruntime', allow_unverified=True)


@pytest.mark.parametrize('name', ['a\0b', '../model.onnx', '.hidden', 'sub/model.onnx', ''])
def test_a_file_name_that_no_build_writes_is_refused(engine_dir, tiny_checkpoint, name):
    folder = engine_folder(engine_dir)
    manifest = read_manifest(folder)
    files = {**manifest.artefacts, name: Artefact('0' * 64, 1)}
    content = replace(manifest, artefacts=files).to_json()
    (folder / MANIFEST_FILE).write_text(json.dumps(content))
    with pytest.raises(EngineMismatchError, match='its manifest names the file'):
        load(engine_dir, tiny_checkpoint, 'onnxruntime', allow_unverified=True)


def test_a_deep_manifest_is_refused_in_one_line(engine_dir, tiny_checkpoint):
    folder = engine_folder(engine_dir)
    deep = '{"a":' * 900 + '1' + '}' * 900
    text = (folder / MANIFEST_FILE).read_text()
    content = json.loads(text)
    content['processing'] = 'DEEP'
    (folder / MANIFEST_FILE).write_text(json.dumps(content).replace('"DEEP"', deep))
    with pytest.raises(EngineMismatchError) as caught:
        load(engine_dir, tiny_checkpoint, 'onnxruntime')
    assert '\n' not in str(caught.value)


def load_onnx(model: bytes):
    manifest = Mock(precision='fp32')
    files = {ONNX_FILE: model, ONNX_DATA_FILE: b''}
    return OnnxruntimeVisionEncoder(manifest, files, dtype=torch.float32, device=CPU)


def with_node(*arguments, **attributes):
    model, _ = noise_model()
    node = helper.make_node(*arguments, **attributes)
    model.graph.node.append(node)
    return model, node.SerializeToString()


@pytest.mark.attack(
    'an engine that computes something else from a later sweep on: it draws random numbers, '
    'counts its runs in the weights, or has a loop or a branch',
    'an ONNX file with an operator that no encoder needs is not loaded',
)
@pytest.mark.parametrize('domain', ['', 'com.microsoft'])
@pytest.mark.parametrize(
    'name',
    ['RandomUniformLike', 'Bernoulli', 'Dropout', 'BatchNormalization', 'Loop', 'If', 'LSTM'],
)
def test_an_engine_of_other_operators_is_not_loaded(name, domain):
    model, _ = with_node(name, ['frames'], ['unused'], domain=domain)
    with pytest.raises(EngineMismatchError, match=f'has the operator .*{name}.*, allowed: '):
        load_onnx(model.SerializeToString())


def test_an_operator_that_writes_into_the_weights_is_refused():
    weights = [helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0]) for name in 'sbmv']
    nodes = [
        helper.make_node('BatchNormalization', ['x', *'sbmv'], ['n', 'mean', *'opq']),
        helper.make_node('Identity', ['mean'], ['y']),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, d)
        for n, d in (('x', [2, 1]), ('y', [1]))
    ]
    graph = helper.make_graph(nodes, 'counter', ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    zeros = {'x': np.zeros((2, 1), np.float32)}
    first, second = (float(session.run(['y'], zeros)[0][0]) for _ in range(2))
    assert second < first  # the same input gives another output
    with pytest.raises(EngineMismatchError, match="operator 'BatchNormalization'"):
        checked_model(model.SerializeToString())


@pytest.mark.attack(
    'an engine whose bytes protobuf and ONNX Runtime could read in two ways, to hide an operator',
    'its runtime gets the model as it was read for the check, written anew',
)
@pytest.mark.parametrize(
    'spelling',
    [
        b'\x22\x89\x00Bernoulli',
        b'\xa2\x00\x09Bernoulli',
        b'\xa2\x80\x00\x89\x80\x00Bernoulli',
        b'\xa2\x80\x80\x80\x10\x09Bernoulli',
        b'\xa2\x80\x80\x80\x70\x09Bernoulli',
    ],
)
def test_an_operator_is_found_however_protobuf_writes_it(spelling):
    node = helper.make_node('Bernoulli', ['frames'], ['unused']).SerializeToString()
    changed = node.replace(b'\x22\x09Bernoulli', spelling)
    assert changed != node
    model, _ = noise_model()
    graph = model.graph.SerializeToString() + field(1, changed)
    model.ClearField('graph')
    with pytest.raises(EngineMismatchError, match=r'the operator|is no ONNX'):
        load_onnx(model.SerializeToString() + field(7, graph))


def test_onnx_runtime_gets_the_model_as_it_was_read(monkeypatch):
    def note(content, *_, **__):
        given.append(content)
        raise ValueError('noted')

    given = []
    monkeypatch.setattr(onnxruntime, 'InferenceSession', note)
    model = noise_model()[0].SerializeToString(deterministic=True)
    with pytest.raises(EngineMismatchError, match='noted'):
        load_onnx(model + field(15, b'another graph'))
    assert given == [model]


def field(number, content):
    """Bytes of a message as protobuf writes them in another one."""
    return bytes([number << 3 | 2]) + _VarintBytes(len(content)) + content


def test_what_is_no_onnx_is_not_loaded():
    with pytest.raises(EngineMismatchError, match=r'model\.onnx is no ONNX: '):
        load_onnx(b'\x0a\xff')


def test_a_graph_or_a_function_in_an_engine_is_not_loaded():
    graph = noise_model()[0].graph
    model, _ = with_node('Identity', ['frames'], ['unused'], body=graph)
    with pytest.raises(EngineMismatchError, match='a graph in a node'):
        load_onnx(model.SerializeToString())
    model, _ = noise_model()
    opset = helper.make_opsetid('', 18)
    model.functions.append(helper.make_function('own', 'Add', ['a'], ['b'], [], [opset]))
    with pytest.raises(EngineMismatchError, match='has functions'):
        load_onnx(model.SerializeToString())


@pytest.mark.attack(
    "an engine in ONNX Runtime's own format, in which no operator would be found",
    'not loaded',
)
def test_another_format_is_not_loaded(tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / 'model.ort')
    options.add_session_config_entry('session.save_model_format', 'ORT')
    onnxruntime.InferenceSession(noise_model()[0].SerializeToString(), options)
    content = (tmp_path / 'model.ort').read_bytes()
    onnxruntime.InferenceSession(content)
    with pytest.raises(EngineMismatchError, match='is no ONNX'):
        load_onnx(content)
