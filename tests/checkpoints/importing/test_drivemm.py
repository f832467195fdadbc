from definitions import drivemm_views, llama_logits
import numpy as np
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.importing.drivemm import plan_import
from p2d_node.checkpoints.importing.importer import import_checkpoint
from p2d_node.checkpoints.importing.streaming import Source
from p2d_node.checkpoints.weight_files import find_weight_files
from p2d_node.config import DriveConfig
from p2d_node.language_model.families.registry import load_family
from p2d_node.pipeline import DrivingPipeline
from p2d_node.preprocessing import ImageProcessing
from p2d_node.records import NUSCENES_CAMERAS
from published import drivemm_config, write_drivemm
import pytest
from safetensors.torch import load_file
from sweeps import make_frame_set
import torch
from transformers import AutoTokenizer

CPU = torch.device('cpu')
CAMERAS = NUSCENES_CAMERAS
QUESTION = 'Is <c1,CAM_BACK,1088.3,497.5> near?'


def ignore_progress(done, total):
    assert 0 < done <= total


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    return write_drivemm(tmp_path_factory.mktemp('published') / 'DriveMM')


@pytest.fixture(scope='module')
def folder(published, tmp_path_factory):
    out = tmp_path_factory.mktemp('models') / 'drivemm'
    import_checkpoint(
        plan_import(published), out, on_progress=ignore_progress, shard_bytes=100_000
    )
    return out


@pytest.fixture(scope='module')
def weights(published):
    source = Source(find_weight_files(published))
    return {name: source.read(name) for name in source.names}


@pytest.fixture(scope='module')
def family(folder):
    return load_family(open_checkpoint(folder), dtype=torch.float64, device=CPU)


@pytest.fixture(scope='module')
def pixel_values():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(CAMERAS), 3, 384, 384, generator=generator, dtype=torch.float64)


@torch.inference_mode()
def our_logits(family, prompt, visual_tokens):
    inputs = family.embed_prefix(prompt, visual_tokens)
    prefix = family.decoder.resume_prefill(family.decoder.begin_prefill(inputs))
    text = family.embed_text(prompt.suffix, inputs.end_position)
    return family.decoder.extend(prefix, [text])[1][0, 0]


def test_visual_tokens_are_those_of_the_published_weights(family, weights, pixel_values):
    expected = drivemm_views(pixel_values, weights, layers=2, heads=16)
    with torch.inference_mode():
        actual = family.vision_module(pixel_values)
    assert actual.shape == (len(CAMERAS), 16, 64)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_logits_are_those_of_the_published_weights(family, weights, pixel_values):
    views = drivemm_views(pixel_values, weights, layers=2, heads=16)
    prompt = family.build_prompt(QUESTION, CAMERAS)
    table, newline = weights['model.embed_tokens.weight'], weights['model.image_newline']
    pieces = []
    for segment, view in zip(prompt.segments, views, strict=True):
        pieces += [table[list(segment)], view, newline[None]]
    sequence = torch.cat([*pieces, table[list(prompt.suffix)]])
    config = drivemm_config(len(table))
    expected = llama_logits(sequence, weights, config)[-1]
    actual = our_logits(family, prompt, views)
    assert expected.std() > 0.1
    # transformers normalises and turns in float32.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('part', 'pair'),
    [
        ('vision_model.encoder.layers.0.self_attn', ('q_proj', 'v_proj')),
        ('model.layers.1.self_attn', ('k_proj', 'v_proj')),
        ('model.layers.1.mlp', ('gate_proj', 'up_proj')),
    ],
)
def test_exchanged_weights_would_be_seen(weights, pixel_values, part, pair):
    exchanged = {name: name for name in weights}
    for name in [n for n in weights if f'{part}.{pair[0]}' in n]:
        exchanged[name], exchanged[name.replace(*pair)] = name.replace(*pair), name
    wrong = {name: weights[other] for name, other in exchanged.items()}
    config = drivemm_config(len(weights['model.embed_tokens.weight']))
    logits = [
        llama_logits(drivemm_views(pixel_values, w, layers=2, heads=16)[0], w, config)
        for w in (weights, wrong)
    ]
    assert (logits[0] - logits[1]).abs().max() > 1e-2


def test_every_published_value_is_kept_bit_for_bit(folder, weights):
    imported = {}
    for path in folder.glob('*.safetensors'):
        imported |= load_file(path)
    assert len(list(folder.glob('*.safetensors'))) > 3
    assert len(imported) == len(weights)
    values = sorted((t.dtype, tuple(t.shape), t.sum().item()) for t in weights.values())
    assert values == sorted((t.dtype, tuple(t.shape), t.sum().item()) for t in imported.values())


def test_the_prompt_is_the_one_of_training(family, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = family.build_prompt(QUESTION, CAMERAS)
    views = [tokenizer.decode(segment) for segment in prompt.segments]
    assert views == [
        '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n'
        'You are a helpful language and vision assistant. You are able to understand the visual '
        'content that the user provides, and assist the user with a variety of tasks using '
        'natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n1: ',
        ' 2: ',
        ' 3: ',
        ' 4: ',
        ' 5: ',
        ' 6: ',
    ]
    assert tokenizer.decode(prompt.suffix) == (
        '. These six images are the front view, front left view, front right view, back view, '
        f'back left view and back right view of the ego vehicle. {QUESTION}<|eot_id|>'
        '<|start_header_id|>assistant<|end_header_id|>\n\n'
    )


def test_the_prompt_follows_the_checkpoints_own_template(tmp_path):
    # Llama 3.1's template writes a date before every conversation; training wrote it into each
    # message, for it applied the template message by message.
    published = write_drivemm(tmp_path / 'published')
    (published / 'chat_template.jinja').write_text(
        '{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday: {{ date_string }}\n\n'
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
        '{% set messages = messages[1:] %}{% endif %}<|eot_id|>'
        "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    )
    tokenizer = plan_import(published).tokenizer
    content = [{'type': 'image'}, {'type': 'text', 'text': 'What?'}]
    text = tokenizer.apply_chat_template(
        [{'role': 'user', 'content': content}], add_generation_prompt=True, tokenize=False
    )
    head = '<|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n\n'
    assert text.startswith(f'<|begin_of_text|>{head}You are a helpful language')
    assert text.endswith(
        f'natural language.<|eot_id|>{head}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n'
        '<|reserved_special_token_0|>\nWhat?<|eot_id|>'
        f'{head}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n'
    )


def test_answers_end_where_a_turn_ends(family, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = tokenizer.convert_tokens_to_ids(['<|end_of_text|>', '<|eot_id|>'])
    assert list(family.end_token_ids) == ends


@pytest.mark.parametrize(
    ('aspect', 'fit'), [('pad', 'pad'), ('square', 'squash'), (None, 'squash')]
)
def test_frames_take_the_shape_that_the_checkpoint_says(tmp_path, aspect, fit):
    published = write_drivemm(tmp_path / 'published', image_aspect_ratio=aspect)
    out = tmp_path / 'out'
    import_checkpoint(plan_import(published), out, on_progress=ignore_progress)
    processing = ImageProcessing.from_folder(out)
    assert processing == ImageProcessing(
        height_px=384,
        width_px=384,
        fit=fit,
        resample=3,
        rescale_factor=1 / 255,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def test_the_pipeline_answers_with_it(folder):
    config = DriveConfig(model=str(folder), device='cpu', max_new_tokens=3)
    pipeline = DrivingPipeline.from_config(config)
    (answer,) = pipeline.answer(make_frame_set(), [QUESTION])
    pipeline.close()
    assert set(answer.tokens_total.values()) == {16}
    assert np.isfinite(answer.mean_log_probability)


def test_a_vocabulary_without_a_spare_token_gets_one(tmp_path):
    published = write_drivemm(tmp_path / 'published')
    for name in ('tokenizer.json', 'tokenizer_config.json'):
        path = published / name
        path.write_text(path.read_text().replace('<|reserved_special_token_0|>', '<|other|>'))
    out = tmp_path / 'out'
    import_checkpoint(plan_import(published), out, on_progress=ignore_progress)
    family = load_family(open_checkpoint(out), dtype=torch.float64, device=CPU)
    assert len(family.build_prompt(QUESTION, CAMERAS).segments) == len(CAMERAS)
