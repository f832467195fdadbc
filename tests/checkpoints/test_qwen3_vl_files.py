"""A folder with the files that Qwen3-VL and models trained from it are published in.

Cosmos-Reason2 is such a model: it needs no import.
"""

import json

from p2d_node.checkpoints.weight_files import INDEX_FILE, WEIGHTS_FILE
from p2d_node.config import DriveConfig
from p2d_node.pipeline import DrivingPipeline
import pytest
from safetensors.torch import load_file, save_file
from sweeps import make_frame_set
from tiny_qwen3 import write_published_qwen3_vl


def split_weights(folder, num_shards=2):
    """Write the weights as shards with an index, and remove the whole file."""
    weights = load_file(folder / WEIGHTS_FILE)
    names = sorted(weights)
    weight_map = {}
    for number in range(num_shards):
        file = f'model-{number + 1:05d}-of-{num_shards:05d}.safetensors'
        mine = names[number::num_shards]
        save_file({name: weights[name] for name in mine}, folder / file, metadata={'format': 'pt'})
        weight_map |= dict.fromkeys(mine, file)
    (folder / INDEX_FILE).write_text(json.dumps({'metadata': {}, 'weight_map': weight_map}))
    (folder / WEIGHTS_FILE).unlink()


@pytest.mark.parametrize('tied', [True, False], ids=['2B', '8B'])
def test_it_loads_as_it_is(tmp_path, tied):
    folder = write_published_qwen3_vl(tmp_path / 'Cosmos-Reason2', tied=tied)
    split_weights(folder)
    assert {path.name for path in folder.iterdir()} >= {
        'chat_template.json',
        'config.json',
        'generation_config.json',
        'merges.txt',
        'preprocessor_config.json',
        'tokenizer.json',
        'tokenizer_config.json',
        'video_preprocessor_config.json',
        'vocab.json',
    }
    config = DriveConfig(model=str(folder), device='cpu', dtype='float32', max_new_tokens=4)
    pipeline = DrivingPipeline.from_config(config)
    (answer,) = pipeline.answer(make_frame_set(), ['Is the road wet?'])
    pipeline.close()
    assert answer.num_generated_tokens >= 1
    assert answer.model == 'Cosmos-Reason2'
