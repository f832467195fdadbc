"""Which weights are loaded is what is fingerprinted, and nothing outside of the folder."""

import json
import os
from pathlib import Path
import shutil

from p2d_node.checkpoints import settings_limits
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.importing.streaming import Source
from p2d_node.checkpoints.weight_files import INDEX_FILE, read_headers, read_tensors, WEIGHTS_FILE
from p2d_node.durable_files import write_json
from p2d_node.errors import ConfigError
from p2d_node.language_model.families.registry import hash_vision_part, load_vision_module
import pytest
from safetensors.torch import load_file, save_file
import torch

SHARD = 'model-00001-of-00001.safetensors'


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / 'models' / 'tiny')


def write_index(folder: Path, shard: str, weights: Path) -> None:
    weight_map = dict.fromkeys(load_file(weights), shard)
    write_json(folder / INDEX_FILE, {'metadata': {}, 'weight_map': weight_map})


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


@pytest.mark.attack(
    'An index that names weights outside of the checkpoint, which the fingerprint does not cover',
    'refused: one function resolves the files for both, and each is a plain file in the folder',
)
@pytest.mark.parametrize(
    'name', ['../elsewhere/real.safetensors', '{absolute}', 'sub/x.safetensors']
)
def test_an_index_names_files_of_its_folder_only(folder, tmp_path, name):
    weights = tmp_path / 'models' / 'elsewhere' / 'real.safetensors'
    weights.parent.mkdir()
    (folder / WEIGHTS_FILE).rename(weights)
    write_index(folder, name.format(absolute=weights), weights)
    assert 'allowed: .safetensors files in the same folder' in refusal(folder)


@pytest.mark.parametrize('name', [WEIGHTS_FILE, 'config.json', 'tokenizer.json'])
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, name):
    outside = tmp_path / name
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    assert f'{name} is a link to {outside}, which is outside' in refusal(folder)


def test_the_links_of_a_hub_snapshot_are_followed_to_its_own_blobs_only(tiny_checkpoint, tmp_path):
    repository = tmp_path / 'hub' / 'models--owner--tiny'
    snapshot, blobs = repository / 'snapshots' / 'abc123', repository / 'blobs'
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(tiny_checkpoint.iterdir())):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f'../../blobs/{number}')
    checkpoint = open_checkpoint(snapshot)
    assert hash_vision_part(checkpoint) == hash_vision_part(open_checkpoint(tiny_checkpoint))
    other = tmp_path / 'hub' / 'models--owner--other' / 'blobs'
    other.mkdir(parents=True)
    (snapshot / WEIGHTS_FILE).unlink()
    shutil.copyfile(tiny_checkpoint / WEIGHTS_FILE, other / '0')
    (snapshot / WEIGHTS_FILE).symlink_to('../../../models--owner--other/blobs/0')
    assert 'which is outside of the checkpoint' in refusal(snapshot)


@pytest.mark.attack(
    'A pipe or a device in place of a file of a checkpoint', 'refused before it is opened'
)
@pytest.mark.parametrize('name', [WEIGHTS_FILE, 'config.json', 'chat_template.jinja'])
def test_a_pipe_is_refused_without_a_wait(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f'{name} is no plain file' in refusal(folder)


def test_a_link_that_leads_nowhere_is_named(folder):
    (folder / 'config.json').unlink()
    (folder / 'config.json').symlink_to('config.json')
    assert 'config.json leads nowhere' in refusal(folder)


def test_the_fingerprint_is_that_of_the_weights_that_are_loaded(folder):
    original = hash_vision_part(open_checkpoint(folder))
    weights = load_file(folder / WEIGHTS_FILE)
    changed = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    save_file(changed, folder / SHARD, {'format': 'pt'})
    write_index(folder, SHARD, folder / WEIGHTS_FILE)
    # model.safetensors is loaded where it exists, and the index is not looked at.
    assert hash_vision_part(open_checkpoint(folder)) == original
    assert all_parameters(folder).abs().max() > 0
    (folder / WEIGHTS_FILE).unlink()
    assert hash_vision_part(open_checkpoint(folder)) != original
    assert all_parameters(folder).abs().max() == 0


def all_parameters(folder: Path) -> torch.Tensor:
    module = load_vision_module(open_checkpoint(folder))
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.attack(
    'A config.json that names another config.json, which no check and no fingerprint reads',
    'refused by name; and a model is built from the one file that is checked',
)
@pytest.mark.parametrize('is_refused', [True, False])
def test_no_other_config_is_read(folder, monkeypatch, is_refused):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    other = {**config, 'vision_config': {**config['vision_config'], 'layer_norm_eps': 0.5}}
    write_json(folder / 'config.4.0.0.json', other)
    write_json(path, {**config, 'configuration_files': ['config.4.0.0.json']})
    if is_refused:
        assert 'configuration_files: got' in refusal(folder)
        return
    monkeypatch.delitem(settings_limits.REFUSED, 'configuration_files')
    module = load_vision_module(open_checkpoint(folder))
    assert module.vision_tower.config.layer_norm_eps != 0.5


@pytest.mark.attack(
    'Parts of a distributed checkpoint beside the weights, which transformers loads instead',
    'refused: the weights that are fingerprinted would not be those that are loaded',
)
def test_parts_of_a_distributed_checkpoint_are_refused(folder):
    name = 'shard-00001-model-00001-of-00001.safetensors'
    weights = load_file(folder / WEIGHTS_FILE)
    zeros = {key: torch.zeros_like(tensor) for key, tensor in weights.items()}
    save_file(zeros, folder / name, {'format': 'pt'})
    assert f'{name} is a part of a distributed checkpoint, allowed: model.saf' in refusal(folder)


@pytest.mark.attack(
    'An index of a thousand names for one file with a header of megabytes',
    'refused: each name is a file of its own, there are at most 1,000, and headers have 16 MiB',
)
@pytest.mark.parametrize('link', [os.symlink, os.link])
def test_a_file_is_one_shard(folder, link):
    (folder / WEIGHTS_FILE).rename(folder / SHARD)
    link(folder / SHARD, folder / 'other.safetensors')
    write_json(folder / INDEX_FILE, {'weight_map': {'a': SHARD, 'b': 'other.safetensors'}})
    assert 'got 2 names of 1 files, allowed: up to 1000 different files' in refusal(folder)


def test_there_are_not_too_many_shards(folder):
    names = [f'{number}.safetensors' for number in range(1001)]
    for name in names:
        (folder / name).touch()
    (folder / WEIGHTS_FILE).unlink()
    write_json(folder / INDEX_FILE, {'weight_map': {name: name for name in names}})
    assert 'got 1001 names of 1001 files, allowed: up to 1000' in refusal(folder)


@pytest.mark.parametrize(('num_tensors', 'num_bytes'), [(20_000, 0), (0, 6 << 20)])
def test_the_headers_of_all_shards_count(folder, num_tensors, num_bytes):
    entry = {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]}
    content = json.dumps({f't{number}': entry for number in range(num_tensors)}).encode()
    content += b' ' * num_bytes
    paths = [folder / f'{number}.safetensors' for number in range(3)]
    for path in paths:
        path.write_bytes(len(content).to_bytes(8, 'little') + content)
    reason = 'more than 50000 tensors' if num_tensors else 'allowed: up to 16777216 in all files'
    with pytest.raises(ConfigError, match=reason):
        read_headers(paths)


def test_a_link_to_a_folder_is_refused(folder, tmp_path):
    (folder / 'sub').symlink_to(tmp_path)
    assert 'sub is a link to a folder' in refusal(folder)


def test_a_setting_that_names_other_weights_is_refused(folder):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    write_json(path, {**config, 'transformers_weights': 'other.safetensors'})
    assert "transformers_weights: got 'other.safetensors', allowed: none" in refusal(folder)
    write_json(path, config)
    write_json(folder / 'adapter_config.json', {'base_model_name_or_path': '/elsewhere'})
    assert 'holds an adapter (adapter_config.json), which names other weights' in refusal(folder)


def test_an_index_without_weights_is_refused(folder):
    (folder / WEIGHTS_FILE).unlink()
    assert 'has no weights: no model.safetensors' in refusal(folder)
    write_json(folder / INDEX_FILE, {'weight_map': []})
    assert 'has no weight_map' in refusal(folder)
    write_json(folder / INDEX_FILE, {'weight_map': {'a': SHARD}})
    assert f'{SHARD} is missing' in refusal(folder)


@pytest.mark.attack(
    'Weights with a tensor of 400,000 sides of 2^62, whose product takes hours',
    'refused: a tensor has up to 8 sides, each up to 2^40',
)
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    'shape',
    [[1 << 62] * 400_000 + [0], [0, 1 << 62, 1 << 62], [0, 1 << 70], [0, 1 << 40, 1 << 40]],
)
def test_a_shape_that_no_tensor_has_is_refused(folder, shape):
    entry = {'dtype': 'F32', 'shape': shape, 'data_offsets': [0, 0]}
    header = json.dumps({'a': entry}).encode()
    (folder / WEIGHTS_FILE).write_bytes(len(header).to_bytes(8, 'little') + header)
    with pytest.raises(ConfigError, match='a shape that no tensor has'):
        Source([folder / WEIGHTS_FILE])
    with pytest.raises(ConfigError, match='a shape that no tensor has'):
        read_tensors(folder)


@pytest.mark.parametrize(
    'entry',
    [
        {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 4]},
        {'dtype': 'F32', 'shape': [-1], 'data_offsets': [0, 4]},
        {'dtype': 'F32', 'shape': [1.0], 'data_offsets': [0, 4]},
        {'dtype': 'X32', 'shape': [1], 'data_offsets': [0, 4]},
        {'dtype': 'F32', 'shape': [1 << 200], 'data_offsets': [0, 4]},
        {'dtype': 'F32', 'shape': [1]},
        'F32',
    ],
)
def test_a_header_that_lies_is_refused(folder, entry):
    header = json.dumps({'a': entry}).encode()
    (folder / WEIGHTS_FILE).write_bytes(len(header).to_bytes(8, 'little') + header + bytes(4))
    with pytest.raises(ConfigError, match='not a complete safetensors file'):
        read_tensors(folder)


@pytest.mark.attack(
    'weights in a format of 4 bits, which take 8 to 16 times as much memory',
    'refused by the header: numbers of 16 bits and more are allowed',
)
@pytest.mark.parametrize('dtype', ['F4', 'F8_E4M3', 'U8'])
def test_numbers_of_few_bits_are_refused(folder, dtype):
    header = json.dumps({'a': {'dtype': dtype, 'shape': [2], 'data_offsets': [0, 1]}}).encode()
    content = len(header).to_bytes(8, 'little') + header + bytes(2)
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(ConfigError, match=f"numbers of '{dtype}', allowed: F64, I64, F32, I32, F"):
        read_tensors(folder)


@pytest.mark.attack(
    'an index of 64 MiB, or a config.json, which is read again and again, and takes a gigabyte',
    'refused: an index has up to 16 MiB and 50,000 tensors, and settings have up to 4 MiB',
)
def test_an_index_and_settings_have_a_largest_size(folder):
    names = {f'a{number}': SHARD for number in range(50_001)}
    write_json(folder / INDEX_FILE, {'weight_map': names})
    (folder / WEIGHTS_FILE).unlink()
    assert 'got 50001 tensors, allowed: up to 50000' in refusal(folder)
    (folder / INDEX_FILE).write_bytes(b' ' * (17 << 20))
    assert 'got 17825792 bytes, allowed: at most 16777216' in refusal(folder)
    (folder / 'config.json').write_bytes(b' ' * (5 << 20))
    assert 'got 5242880 bytes, allowed: at most 4194304' in refusal(folder)


@pytest.mark.attack(
    'weights of 33 MB with 479 tensors of the same bytes, of which an import makes 6 GB',
    'refused: each byte is of one tensor',
)
def test_tensors_share_no_bytes(folder):
    entry = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}
    header = json.dumps({'a': entry, 'b': entry}).encode()
    (folder / WEIGHTS_FILE).write_bytes(len(header).to_bytes(8, 'little') + header + bytes(8))
    with pytest.raises(ConfigError, match='two tensors share the byte'):
        read_tensors(folder)
