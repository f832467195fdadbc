"""Every family in the pipeline, in half precision."""

import json
import shutil

from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError
from p2d_node.language_model.families.registry import load_family
from p2d_node.pipeline import DrivingPipeline
import pytest
from sweeps import make_frame_set
from tiny_checkpoints import write_internvl, WRITERS
import torch

QUESTIONS = ('why?', 'Is there a car ahead?')


@pytest.mark.parametrize('prune_layer', [0, 1])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('name', WRITERS)
def test_half_precision_answers_and_chooses(name, dtype, prune_layer, tmp_path):
    config = DriveConfig(
        model=str(WRITERS[name](tmp_path)),
        device='cpu',
        dtype=dtype,
        max_new_tokens=5,
        prune_layer=prune_layer,
    )
    pipeline = DrivingPipeline.from_config(config)
    answers = pipeline.answer(make_frame_set(), QUESTIONS)
    choice = pipeline.choose(make_frame_set(), 'why?', ['stop', 'turn turn'])
    pipeline.close()
    assert all(answer.answer and answer.mean_log_probability < 0 for answer in answers)
    assert all(value < 0 for value in choice.log_likelihoods.values())


def test_weights_shared_by_output_layer_and_embeddings_are_not_missing(tmp_path):
    checkpoint = open_checkpoint(write_internvl(tmp_path, tied=True))
    family = load_family(checkpoint, dtype=torch.float32, device=torch.device('cpu'))
    assert family.decoder._lm_head.weight is family._embed_tokens.weight


@pytest.mark.parametrize(
    ('model_type', 'reason'),
    [
        ('qwen3_5', 'have linear attention'),
        ('gemma3', 'attend to a sliding window'),
        ('smolvlm', 'cuts a picture into tiles'),
        ('alpamayo_r1', 'none for questions'),
        ('cosmos3_edge', 'has no class here yet'),
    ],
)
def test_a_family_that_people_bring_is_refused_with_what_stands_in_the_way(
    model_type, reason, tiny_checkpoint, tmp_path
):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / model_type)
    config = json.loads((folder / 'config.json').read_text())
    config |= {'model_type': model_type}
    config['text_config'] |= {'model_type': f'{model_type}_text'}
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f'got family .{model_type}.*{reason}'):
        DrivingPipeline.from_config(DriveConfig(model=str(folder), device='cpu'))
