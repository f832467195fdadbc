import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

from p2d_node.checkpoints.importing import folder as folders
from p2d_node.checkpoints.importing import streaming
from p2d_node.checkpoints.importing.drivemm import plan_import, TOWER
from p2d_node.checkpoints.importing.importer import import_checkpoint
from p2d_node.checkpoints.importing.streaming import Source
from p2d_node.checkpoints.settings_limits import MAX_LAYERS
from p2d_node.checkpoints.weight_files import INDEX_FILE
from p2d_node.cli.main import main
from p2d_node.errors import ConfigError
from published import linear, write_drivemm
import pytest
from safetensors.torch import load_file, save_file
import torch

FIRST = 'model-00001-of-00003.safetensors'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return write_drivemm(tmp_path_factory.mktemp('whole') / 'DriveMM')


@pytest.fixture
def published(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / 'DriveMM')


@pytest.fixture
def out(tmp_path):
    return tmp_path / 'models' / 'drivemm'


def refuse(published, out, capsys, *more) -> str:
    """Run the command, which must refuse in one line and leave nothing; returns the line."""
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else []
    command = ['import-checkpoint', '--from', 'drivemm', str(published), '--out', str(out)]
    assert main([*command, *more]) == 2
    captured = capsys.readouterr()
    assert captured.out == ''
    lines = [line for line in captured.err.splitlines() if '[transformers]' not in line]
    assert len(lines) == 1
    assert (sorted(out.parent.iterdir()) if out.parent.is_dir() else []) == before
    return lines[0]


def change(published, file, edit):
    weights = load_file(published / file)
    edit(weights)
    save_file(weights, published / file, metadata={'format': 'pt'})


def test_the_command_imports_and_says_so(published, out, capsys):
    command = ['import-checkpoint', '--from', 'drivemm', str(published), '--out', str(out)]
    assert main([*command, '--json']) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['folder'] == str(out)
    assert report['model_type'] == 'llava_onevision'
    index = json.loads((out / INDEX_FILE).read_text())
    assert report['num_weights'] == len(index['weight_map'])
    assert report['num_bytes'] == index['metadata']['total_size']
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o644}
    shutil.rmtree(out)
    assert main(command) == 0
    assert '0 missing, 0 unexpected' in capsys.readouterr().out


def test_weights_that_are_missing_are_counted_and_named(published, out, capsys):
    change(published, FIRST, lambda w: [w.pop(n) for n in list(w) if 'layers.0.self_attn' in n])
    index = json.loads((published / INDEX_FILE).read_text())
    weight_map = {n: f for n, f in index['weight_map'].items() if 'layers.0.self_attn' not in n}
    (published / INDEX_FILE).write_text(json.dumps({'weight_map': weight_map}))
    line = refuse(published, out, capsys)
    assert '4 weights are missing: model.language_model.layers.0.self_attn.q_proj.weight' in line
    assert '0 weights are not expected' in line


def test_weights_that_are_not_expected_are_counted_and_the_first_few_named(published, out, capsys):
    def add(weights):
        for number in range(7):
            linear(weights, f'model.vision_resampler.{number}', 2, 2)

    change(published, FIRST, add)
    line = refuse(published, out, capsys)
    assert '0 weights are missing' in line
    assert '7 weights are not expected: model.vision_resampler.0.weight' in line
    assert line.count('vision_resampler') == 5


@pytest.mark.attack(
    'weights that name 49,000 vision layers, each without a value',
    'refused by the number of layers, before a model is built',
)
def test_more_vision_layers_than_models_have_are_refused(published, out, capsys):
    def add(weights):
        for number in range(MAX_LAYERS + 1):
            weights[f'model.{TOWER}encoder.layers.{number}.a'] = torch.zeros(0)

    change(published, FIRST, add)
    assert 'vision layers, allowed: up to 512' in refuse(published, out, capsys)


def test_weights_of_another_shape_are_named(published, out, capsys):
    def cut(weights):
        name = 'model.layers.0.mlp.gate_proj.weight'
        weights[name] = weights[name][:90].clone()

    change(published, FIRST, cut)
    line = refuse(published, out, capsys)
    assert '1 weights are of another shape than config.json says' in line
    assert 'gate_proj.weight [90, 64] instead of [96, 64]' in line


def test_a_shard_that_the_index_names_must_be_there(published, out, capsys):
    (published / FIRST).unlink()
    assert f'{FIRST} is missing, which {INDEX_FILE} names' in refuse(published, out, capsys)


def test_a_weight_that_the_index_promises_must_be_in_its_shard(published, out, capsys):
    change(published, FIRST, lambda weights: weights.pop('model.embed_tokens.weight'))
    line = refuse(published, out, capsys)
    assert '1 weights are missing: model.language_model.embed_tokens.weight, 0' in line


def test_an_index_without_its_map_is_refused(published, out, capsys):
    (published / INDEX_FILE).write_text('{"weight_map": ["model.norm.weight"]}')
    assert f'{INDEX_FILE} has no weight_map' in refuse(published, out, capsys)


def test_a_truncated_shard_is_refused_before_anything_is_written(published, out, capsys):
    data = (published / FIRST).read_bytes()
    (published / FIRST).write_bytes(data[: len(data) * 2 // 3])
    assert f'{FIRST}: not a complete safetensors file' in refuse(published, out, capsys)


def test_pickles_are_refused_with_a_way_to_convert_them(published, out, capsys):
    for path in published.glob('*.safetensors*'):
        path.unlink()
    (published / 'pytorch_model.bin').write_bytes(b'never read')
    line = refuse(published, out, capsys)
    assert '1 pickled *.bin files, allowed: safetensors' in line
    assert 'weights_only=True' in line


def test_the_way_to_convert_pickles_works(published, tmp_path):
    for path in published.glob('*.safetensors*'):
        path.unlink()
    torch.save({'weight': torch.ones(2)}, published / 'pytorch_model.bin')
    with pytest.raises(ConfigError) as refusal:
        plan_import(published)
    code = str(refusal.value).partition('python -c "')[2].rpartition('"')[0]
    code = code.replace('FILE', 'pytorch_model')
    subprocess.run([sys.executable, '-c', code], cwd=published, check=True, timeout=60)
    assert load_file(published / 'pytorch_model.safetensors')['weight'].tolist() == [1, 1]


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('mm_projector_type', 'linear', "mm_projector_type: got 'linear', allowed: 'mlp2x_gelu'"),
        ('mm_patch_merge_type', 'flat', "mm_patch_merge_type: got 'flat'"),
        ('mm_vision_tower', 'openai/clip-vit-large', "mm_vision_tower: got 'openai/clip-vit-l"),
        ('image_aspect_ratio', 'anyres_max_9', "image_aspect_ratio: got 'anyres_max_9'"),
        ('num_attention_heads', 7, 'not a multiple of the number of attention'),
        ('num_hidden_layers', 'two', "config.json: Validation error for field 'num_hidden_l"),
        ('num_hidden_layers', 3, '9 weights are missing'),
        ('rope_scaling', {'type': 'bogus'}, "config.json: 'bogus' is missing or unknown"),
    ],
)
def test_a_config_of_another_kind_is_refused(published, out, capsys, field, value, message):
    config = json.loads((published / 'config.json').read_text()) | {field: value}
    (published / 'config.json').write_text(json.dumps(config))
    assert message in refuse(published, out, capsys)


def test_a_config_that_lacks_a_field_is_refused(published, out, capsys):
    config = json.loads((published / 'config.json').read_text())
    del config['rms_norm_eps']
    (published / 'config.json').write_text(json.dumps(config))
    assert 'config.json has no rms_norm_eps' in refuse(published, out, capsys)


@pytest.mark.parametrize('ids', ['abc', [1, 'abc'], {'id': 1}])
def test_ends_of_an_answer_that_are_no_ids_are_refused(published, out, capsys, ids):
    (published / 'generation_config.json').write_text(json.dumps({'eos_token_id': ids}))
    assert 'eos_token_id: got ' in refuse(published, out, capsys)


def test_a_tokenizer_config_that_is_no_object_is_refused(published, out, capsys):
    (published / 'tokenizer_config.json').write_text('[]')
    assert 'tokenizer_config.json is not a JSON object' in refuse(published, out, capsys)


def test_a_config_that_is_nested_too_deep_is_refused(published, out, capsys):
    (published / 'config.json').write_text('{"a":' * 100_000)
    assert 'config.json is not valid JSON: ' in refuse(published, out, capsys)


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.json'])
def test_files_that_are_missing_are_named(published, out, capsys, name):
    (published / name).unlink()
    assert name.partition('.')[0] in refuse(published, out, capsys)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path, out, capsys, tiny_checkpoint):
    assert 'mm_projector_type' in refuse(tiny_checkpoint, out, capsys)
    assert 'which is not a folder' in refuse(tmp_path / 'nowhere', out, capsys)


def test_quantised_weights_are_refused(published, out, capsys):
    change(published, FIRST, lambda w: w.update(packed=torch.zeros(3, dtype=torch.uint8)))
    assert "numbers of 'U8', allowed: F64" in refuse(published, out, capsys)


def test_an_existing_folder_is_never_touched(published, out, capsys):
    out.mkdir(parents=True)
    (out / 'mine.txt').write_text('mine')
    assert 'exists; name another folder' in refuse(published, out, capsys)
    assert (out / 'mine.txt').read_text() == 'mine'


def test_too_small_a_disk_is_refused_before_anything_is_written(
    published, out, capsys, monkeypatch
):
    monkeypatch.setattr(folders.shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(9, 8, 1))
    out.parent.mkdir()
    assert 'has 0.0 GB free, needed: 0.1 GB' in refuse(published, out, capsys)


def test_a_disk_that_fills_up_leaves_nothing(published, out, capsys, monkeypatch):
    save = streaming.save_file
    written = []

    def save_until_full(*args, **kwargs):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(save(*args, **kwargs))

    monkeypatch.setattr(streaming, 'save_file', save_until_full)
    plan = plan_import(published)
    with pytest.raises(ConfigError, match=r'cannot be written: .*No space left on device'):
        import_checkpoint(plan, out, on_progress=lambda *_: None, shard_bytes=100_000)
    assert written
    assert list(out.parent.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from p2d_node.checkpoints.importing.drivemm import plan_import, TOWER
from p2d_node.checkpoints.importing.importer import import_checkpoint

def stop(done, total):
    if done > total / 2:
        print('half', flush=True)
        signal.pause()

import_checkpoint(plan_import(Path(sys.argv[1])), Path(sys.argv[2]), on_progress=stop,
                  shard_bytes=100_000)
"""


@pytest.mark.slow
def test_a_killed_import_leaves_no_folder_and_the_next_one_cleans_up(published, out, capsys):
    command = [sys.executable, '-c', KILLED, str(published), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == 'half\n'
        assert not out.exists()
        (unfinished,) = out.parent.iterdir()
        assert any(unfinished.glob('checkpoint-*/*.safetensors'))
        # While it runs, another import must not write there.
        assert 'another import works' in refuse(published, out, capsys)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert not out.exists()
    assert list(out.parent.iterdir()) == [unfinished]
    assert main(['import-checkpoint', '--from', 'drivemm', str(published), '--out', str(out)]) == 0
    assert list(out.parent.iterdir()) == [out]


MEASURED = """
import resource, sys
from pathlib import Path
from p2d_node.checkpoints.importing.drivemm import plan_import, TOWER
from p2d_node.checkpoints.importing.importer import import_checkpoint

plan = plan_import(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import_checkpoint(plan, Path(sys.argv[2]), on_progress=lambda *_: None, shard_bytes=16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    published = write_drivemm(
        tmp_path / 'published', hidden_size=1024, intermediate_size=12_000, num_hidden_layers=3
    )
    size = sum(path.stat().st_size for path in published.glob('*.safetensors'))
    assert size > 250 << 20
    command = [sys.executable, '-c', MEASURED, str(published), str(tmp_path / 'out')]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    # A pending shard, its copy while it is written, and the tensor that did not fit any more.
    assert int(done.stdout) << 10 < 130 << 20


@pytest.mark.attack(
    'A checkpoint without tokenizer.json but with a tokenizer.model, of which transformers would '
    'make one: hours',
    'refused: tokenizer.json is missing',
)
def test_no_tokenizer_is_made_of_unchecked_files(published, out, capsys):
    (published / 'tokenizer.json').unlink()
    (published / 'tokenizer.model').write_bytes(b'x')
    assert 'tokenizer.json is missing; copy it' in refuse(published, out, capsys)


@pytest.mark.attack(
    'A checkpoint of 16 MB with a header of 12 MB, which is read again for each weight',
    'a header is read once',
)
def test_a_header_is_read_once(tmp_path):
    weights = {f'w{number}': torch.full((2, 3), number) + 0.5 for number in range(300)}
    weights['none'] = torch.zeros(0, 4)
    save_file(weights, tmp_path / 'a.safetensors', {'text': 'x' * (12 << 20)})
    begin = time.process_time()
    source = Source([tmp_path / 'a.safetensors'])
    for name, tensor in weights.items():
        torch.testing.assert_close(source.read(name), tensor, rtol=0.0, atol=0.0)
    assert time.process_time() - begin < 2.0
