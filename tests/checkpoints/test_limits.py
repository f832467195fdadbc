"""Checkpoints whose settings would make the node hang or fill its memory."""

import base64
from dataclasses import replace
from functools import reduce
import json
import logging
import math
import os
from pathlib import Path
import re
import resource
import shutil
import time

from memory import peak_growth_bytes
from p2d_node.checkpoints import tokenizer_steps
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.settings_limits import check_limits
from p2d_node.checkpoints.tokenizer_steps import INNER_STEPS, OUTER_SPACES
from p2d_node.checkpoints.weight_files import WEIGHTS_FILE
from p2d_node.config import CameraConfig, DriveConfig
from p2d_node.durable_files import write_json
from p2d_node.errors import ConfigError, P2dError
from p2d_node.held_stderr import held_stderr
from p2d_node.language_model.families.registry import find_family, load_vision_module
from p2d_node.language_model.model_loading import load_weights
from p2d_node.limited_process import LimitError, run_limited
from p2d_node.pipeline import DrivingPipeline
import pytest
from safetensors.torch import load_file, save_file
from sweeps import make_frame_set
from tiny_checkpoints import write_internvl, write_llava, write_qwen2_vl, write_qwen3_vl_moe
from tokenizers import pre_tokenizers, Regex
from transformers import PreTrainedTokenizerFast

MAX_SECONDS = 10.0
MAX_KIBIBYTES = 1 << 20

NESTED = reduce(lambda inner, _: {'x': inner}, range(20), 1)

LONG = {'max_position_embeddings': 1 << 31}
"""So that no prompt is too long."""


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / 'tiny')


def refusal(folder: Path) -> str:
    """The line that refuses a checkpoint, within the time and the memory that are promised."""
    begin, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(P2dError) as caught:
        DrivingPipeline.from_config(DriveConfig(model=str(folder), device='cpu'))
    assert time.monotonic() - begin < MAX_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MAX_KIBIBYTES
    assert '\n' not in str(caught.value)
    return str(caught.value)


def edit_json(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.attack(
    'A config.json with a billion layers, or layers of a million features for each token',
    'refused before anything is built: sizes are bounded, and by the values in the weights',
)
@pytest.mark.parametrize(
    ('part', 'name', 'value', 'reason'),
    [
        ('text_config', 'num_hidden_layers', 10**9, 'got 1000000000, allowed: up to 512'),
        ('vision_config', 'num_hidden_layers', 10**30, 'allowed: up to 512'),
        ('text_config', 'vocab_size', 10**40, 'allowed: up to 300000'),
        ('text_config', 'hidden_size', 1 << 20, 'hidden_size: got 1048576, allowed: up to 16384'),
        ('vision_config', 'out_hidden_size', 1 << 20, 'allowed: up to 16384'),
        ('text_config', 'intermediate_size', 1 << 30, 'allowed: a 16th to 16 times the width'),
        ('vision_config', 'intermediate_size', 1, 'intermediate_size: got 1, allowed: a 16th to'),
        ('text_config', 'head_dim', 500, 'head_dim x num_attention_heads: got 2000, allowed: a'),
        ('text_config', 'num_attention_heads', 300, 'allowed: up to 256'),
        ('text_config', 'partial_rotary_factor', 1e4, 'got 10000.0, allowed: up to 1;'),
        ('text_config', 'partial_rotary_factor', '9', "got '9', allowed: a number"),
        (
            'text_config',
            'rope_parameters',
            {'rope_type': 'longrope', 'long_factor': [[1.0]] * 100},
            'long_factor: got .*, allowed: a list of single numbers',
        ),
        *(
            (
                'text_config',
                'rope_parameters',
                {'rope_type': 'default', 'mrope_section': sections},
                'mrope_section: got .*, allowed: a list of whole numbers;',
            )
            for sections in ('<image>', 0.5, 3, [[]], [2, 2, math.inf], ['a', 2, 2], {})
        ),
        (
            'text_config',
            'x',
            [{'x': [1] * 1000}] * 10,
            'got 10[0-9]+ values, allowed: up to 10000',
        ),
        ('text_config', 'x', {'x': NESTED}, 'more than 16 lists and objects in one another'),
        (
            'text_config',
            'x',
            {'num_experts_per_tok': 16, 'num_hidden_layers': 500},
            'num_experts_per_tok x num_hidden_layers: got 8000, allowed: up to 1024',
        ),
        (
            'text_config',
            'rope_parameters',
            {'rope_type': 'linear', 'factor': 1.0, 'partial_rotary_factor': 2},
            'partial_rotary_factor: got 2, allowed: up to 1;',
        ),
        (
            'vision_config',
            'mlp_ratio',
            1e9,
            'mlp_ratio x width: got 48000000000.0, allowed: a',
        ),
        ('vision_config', 'image_size', 1 << 20, 'describes a model of|allowed'),
    ],
)
def test_a_model_of_absurd_size_is_refused(folder, part, name, value, reason):
    def edit(config):
        config[part][name] = value

    edit_json(folder / 'config.json', edit)
    assert re.search(reason, refusal(folder))


@pytest.mark.attack(
    'A config.json that leaves out or hides the width that its layers are compared with',
    'the layers themselves are compared: each makes up to 16 times as many features as it gets',
)
@pytest.mark.parametrize(
    'changes',
    [
        {'embed_dim': None, 'intermediate_size': 64 * 17},
        {'embed_dim': 1 << 14, 'intermediate_size': 64 * 17},
        {'model_type': 'qwen3', 'num_attention_heads': 16, 'num_key_value_heads': 16},
    ],
)
def test_layers_that_are_too_wide_are_refused(folder, changes):
    edit_json(folder / 'config.json', lambda config: config['text_config'].update(changes))
    assert re.search('makes [0-9]+ features of 64, allowed: up to 16 times', refusal(folder))


@pytest.mark.attack(
    'A config.json that gives settings other names, under which a checkpoint chooses its kernels',
    'refused by name; kernels are those of this project in any case',
)
@pytest.mark.parametrize('part', [None, 'text_config', 'vision_config'])
@pytest.mark.parametrize('kernel', ['eager', 'owner/kernel'])
def test_a_checkpoint_gives_settings_no_other_names(folder, part, kernel):
    names = {'image_token_id': 'image_token_index', 'own': '_attn_implementation'}

    def edit(config):
        settings = config if part is None else config[part]
        settings |= {'attribute_map': names, 'own': kernel}

    edit_json(folder / 'config.json', edit)
    assert 'attribute_map: got' in refusal(folder)


@pytest.mark.attack(
    'A config.json with 64 layers that tokens have features of, or 512 experts per token',
    'refused above 8 layers and 16 experts',
)
@pytest.mark.parametrize(
    ('key', 'value', 'allowed'),
    [
        ('deepstack_visual_indexes', list(range(9)), 8),
        ('vision_feature_layer', [-1] * 9, 8),
        ('num_experts_per_tok', 17, 16),
        ('temporal_patch_size', 5, 4),
    ],
)
def test_features_per_token_are_few(folder, key, value, allowed):
    edit_json(folder / 'config.json', lambda config: config['text_config'].update({key: value}))
    assert f'allowed: up to {allowed}' in refusal(folder)


@pytest.mark.attack(
    'A processor of a Qwen-VL checkpoint that makes pictures of one size, of 8192 pixels',
    'refused above 2^21 pixels, as the smallest size of those that take any size',
)
def test_views_of_a_fixed_size_have_few_pixels(folder):
    path = write_qwen2_vl(folder.parent / 'qwen') / 'preprocessor_config.json'
    size = {'height': 1449, 'width': 1449}
    edit_json(path, lambda c: c.update(image_processor_type='SiglipImageProcessor', size=size))
    assert 'image size: got 1449 x 1449 pixels, allowed: up to 2097152' in refusal(path.parent)


@pytest.mark.attack(
    'A config.json of pictures of 8192 pixels in patches of 128, which take gigabytes per sweep',
    'refused above 2048 pixels',
)
@pytest.mark.parametrize(('key', 'value'), [('image_size', 2049), ('patch_size', 129)])
def test_pictures_and_patches_have_a_size(folder, key, value):
    for size in (value, [value, value]):
        change = {key: size}
        edit_json(folder / 'config.json', lambda c, new=change: c['vision_config'].update(new))
        assert f'{key}: got {value}, allowed: up to {value - 1}' in refusal(folder)


@pytest.mark.attack(
    'A config.json that names a layer of the vision tower which it does not have',
    'refused at start, not at each sweep',
)
@pytest.mark.parametrize(
    ('write', 'layers', 'allowed'),
    [
        (write_llava, 3, '-3 to 2, as the vision tower has 2 layers'),
        (write_llava, [-4], '-3 to 2'),
        (write_internvl, -4, '-3 to 2'),
        (write_internvl, [-1], 'one layer'),
    ],
)
def test_a_layer_that_the_vision_tower_lacks_is_refused(tmp_path, write, layers, allowed):
    folder = write(tmp_path / 'tiny')
    edit_json(folder / 'config.json', lambda config: config.update(vision_feature_layer=layers))
    assert f'vision_feature_layer: got {layers}, allowed: {allowed}' in refusal(folder)
    with pytest.raises(ConfigError, match='vision_feature_layer'):  # for p2d export
        load_vision_module(open_checkpoint(folder))


def edit_image_size(folder: Path, side: int) -> None:
    """Give a tiny LLaVA-OneVision pictures of side x side patches, with weights that fit."""
    config = json.loads((folder / 'config.json').read_text())
    size_px = side * config['vision_config']['patch_size']
    edit_json(folder / 'config.json', lambda c: c['vision_config'].update(image_size=size_px))
    size = {'height': size_px, 'width': size_px}
    edit_json(folder / 'preprocessor_config.json', lambda c: c.update(size=size))
    weights = load_file(folder / WEIGHTS_FILE)
    name = next(name for name in weights if 'position_embedding' in name)
    weights[name] = weights[name][:1].repeat(side * side, 1)
    save_file(weights, folder / WEIGHTS_FILE, {'format': 'pt'})


@pytest.mark.attack(
    'Weights of a megabyte whose pictures become so many patches that a sweep takes minutes, or '
    'so many visual tokens that their selection takes 100 GB',
    'refused at start: a picture has up to 16,384 patches and 4,096 visual tokens',
)
@pytest.mark.parametrize('family', ['llava', 'qwen'])
def test_pictures_of_very_many_patches_are_refused(folder, tmp_path, family):
    if family == 'llava':
        edit_image_size(folder, 65)
        assert 'got 4225 patches and 4225 visual tokens' in refusal(folder)
        return
    folder = write_qwen2_vl(tmp_path / 'qwen')
    size = {'shortest_edge': 784, 'longest_edge': 10**9}
    edit_json(folder / 'preprocessor_config.json', lambda c: c.update(size=size))
    edit_json(folder / 'config.json', lambda c: c['text_config'].update(LONG))
    assert 'got 89600 patches and 22400 visual tokens' in refusal(folder)
    with pytest.raises(ConfigError, match='got 89600 patches'):  # for p2d export and build-engine
        load_vision_module(open_checkpoint(folder), view_size=(896, 1600))


@pytest.mark.attack(
    'Weights of a megabyte with many visual tokens per picture, for a node that makes clips',
    'refused at start: the clip of a camera has up to 12,288 visual tokens',
)
def test_clips_of_very_many_tokens_are_refused(folder):
    edit_image_size(folder, 32)
    edit_json(folder / 'config.json', lambda c: c['text_config'].update(LONG))
    cameras = {'CAM_FRONT': CameraConfig()}
    config = DriveConfig(model=str(folder), device='cpu', cameras=cameras, frames_per_camera=16)
    with pytest.raises(ConfigError, match=r'frames_per_camera: got 16, allowed .*: up to 12, as'):
        DrivingPipeline.from_config(config)
    DrivingPipeline.from_config(replace(config, frames_per_camera=12)).close()


def test_warnings_of_transformers_about_a_checkpoint_are_not_shown(folder, caplog, monkeypatch):
    """Some repeat texts of the checkpoint as they are."""
    write_json(folder / 'generation_config.json', {'temperature': 0.5, 'do_sample': False})
    monkeypatch.setattr(logging.getLogger('transformers'), 'handlers', [caplog.handler])
    DrivingPipeline.from_config(DriveConfig(model=str(folder), device='cpu')).close()
    assert caplog.messages == []


def write_weights(folder: Path, header: bytes, size: int) -> None:
    with (folder / WEIGHTS_FILE).open('wb') as file:
        file.write(size.to_bytes(8, 'little') + header)
        file.truncate(8 + size)


@pytest.mark.attack(
    'Weights with a header of 4 GB, or with a million tensors', 'refused by the size of the header'
)
def test_headers_without_end_are_refused(folder):
    write_weights(folder, b'{', 4 << 30)
    assert '4294967304 bytes, of which' in refusal(folder)
    (folder / WEIGHTS_FILE).unlink()
    with (folder / WEIGHTS_FILE).open('wb') as file:
        file.truncate(100 << 30)
    assert '107374182400 bytes, of which 0 are on the disk' in refusal(folder)
    entry = {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]}
    write_weights(folder, b'{' + bytes(17 << 20), 17 << 20)
    assert 'bytes, allowed: up to 16777216' in refusal(folder)
    many = json.dumps({str(number): entry for number in range(50_001)}).encode()
    write_weights(folder, many, len(many))
    assert 'got more than 50000 tensors' in refusal(folder)
    deep = b'[' * 100_000
    write_weights(folder, deep, len(deep))
    assert 'not a complete safetensors file' in refusal(folder)


@pytest.mark.attack(
    'A chat template of nested loops, or that writes a text of 3 GB',
    'refused: templates run once, at start, in a process with 3 s and 256 MiB',
)
@pytest.mark.parametrize(
    ('template', 'reason'),
    [
        (
            '{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}'
            '{% endfor %}{% endfor %}{% endfor %}',
            'it takes longer than 3 s',
        ),
        ("{{ 'x' * 3000000000 }}", 'it needs more than 256 MiB'),
        ("{{ 'x' * 3000000 }}", 'result is larger|the question 0 times'),
        ('{{ ' + '(' * 3000 + '1' + ')' * 3000 + ' }}', 'its chat template fails'),
        ('{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}', 'RecursionError'),
        ("{{ strftime_now('%d') }}{{ messages[0].content[-1].text }}", 'depends on the date'),
        ('{{ [1, 2]|random }}{{ messages[0].content[-1].text }}', 'depends on the date or on ch'),
        (
            '{{ messages[0].content[-1].text|length }}{{ messages[0].content[-1].text }}',
            'different things around different questions',
        ),
    ],
)
def test_a_chat_template_that_hangs_or_grows_is_refused(folder, template, reason):
    (folder / 'chat_template.jinja').write_text(template)
    assert re.search(reason, refusal(folder))


def test_a_chat_template_that_is_too_long_is_refused(folder):
    (folder / 'chat_template.jinja').write_text('x' * (1 << 21))
    assert 'chat_template.jinja has 2097152 bytes, allowed: up to 1048576' in refusal(folder)


@pytest.mark.attack(
    'A tokenizer that makes much of a letter which the text that is tried at start has not',
    'refused: a replacement may be four times as long as what it replaces',
)
def test_replacements_that_grow_are_refused(folder):
    step = {'type': 'Replace', 'pattern': {'String': 'Z'}, 'content': 'b' * 5}
    edit_json(folder / 'tokenizer.json', lambda content: content.update(normalizer=step))
    assert 'replaces one character by 5, allowed: up to 4' in refusal(folder)


@pytest.mark.attack(
    'A tokenizer that makes megabytes of a short text', 'refused by what its steps can add'
)
@pytest.mark.parametrize(
    'normalizer',
    [
        {'type': 'Replace', 'pattern': {'String': 'a'}, 'content': 'x' * 1000},
        {'type': 'Replace', 'pattern': {'Regex': ''}, 'content': 'x' * 128},
        {'type': 'Prepend', 'prepend': 'x' * 1000},
        {'type': 'Sequence', 'normalizers': [{'type': 'Prepend', 'prepend': ' .' * 16}] * 3},
        {
            'type': 'Sequence',
            'normalizers': [
                {'type': 'Replace', 'pattern': {'String': 'a'}, 'content': 'aa'} for _ in range(7)
            ],
        },
        {'type': 'Sequence', 'normalizers': [{'type': 'NFKD'}, {'type': 'NFKD'}]},
    ],
)
def test_a_normalizer_that_grows_is_refused(folder, normalizer):
    edit_json(folder / 'tokenizer.json', lambda content: content.update(normalizer=normalizer))
    assert 'normalizer and pre_tokenizer: makes' in refusal(folder)


@pytest.mark.attack(
    'A tokenizer whose steps are lists of values, or lack a type: the library reads them too',
    'refused: a step is an object with a type that is known',
)
@pytest.mark.parametrize('name', ['normalizer', 'pre_tokenizer', 'decoder'])
@pytest.mark.parametrize(
    'step',
    [
        [{'String': 'k'}, 'x' * 1000],
        ['x' * 1000],
        ['x' * 1000, 'y', True],
        {'pattern': {'String': 'k'}, 'content': 'x' * 1000},
        {'prepend': 'x' * 1000},
        {'type': ['Replace'], 'pattern': {'String': 'k'}, 'content': 'x' * 1000},
        {'type': 'Unknown', 'prepend': 'x' * 1000},
        {'type': 'Replace', 'pattern': ['k'], 'content': 'x'},
        {'type': 'Replace', 'pattern': {'String': 'k', 'Regex': 'k'}, 'content': 'x'},
        {'type': 'Replace', 'pattern': {'String': 'k'}, 'content': ['x' * 1000]},
        {'type': 'Sequence'},
    ],
)
@pytest.mark.parametrize('is_inner', [False, True])
def test_steps_of_another_form_are_refused(folder, name, step, is_inner):
    part = {'type': 'Sequence', INNER_STEPS[name]: [step]} if is_inner else step
    edit_json(folder / 'tokenizer.json', lambda content: content.update({name: part}))
    assert re.search(rf'tokenizer.json: {name}.*: got .* allowed: ', refusal(folder))


@pytest.mark.attack(
    'A table of replacements in base64 without its padding, which only the library reads',
    'refused',
)
def test_a_table_of_replacements_is_base64_with_its_padding(folder):
    table = base64.b64encode(bytes(4) + b'x' * 1000).decode()
    assert table.endswith('=')
    step = {'type': 'Precompiled', 'precompiled_charsmap': table}
    edit_json(folder / 'tokenizer.json', lambda content: content.update(normalizer=step))
    assert 'makes 1000 characters of one' in refusal(folder)
    step['precompiled_charsmap'] = table.rstrip('=')
    edit_json(folder / 'tokenizer.json', lambda content: content.update(normalizer=step))
    assert 'precompiled_charsmap: got' in refusal(folder)


def test_a_model_of_a_tokenizer_is_an_object(folder):
    edit_json(folder / 'tokenizer.json', lambda content: content.update(model=['BPE']))
    assert "model: got ['BPE'], allowed: an object" in refusal(folder)


EMPTY_SUFFIX = {'type': 'BPEDecoder', 'suffix': ''}
EMPTY_DELIMITER = {'type': 'CTC', 'pad_token': 'p', 'word_delimiter_token': '', 'cleanup': False}


@pytest.mark.attack(
    'A tokenizer whose tokens become thousands of letters each, in an answer or while it is read',
    'refused: a token has up to 256 letters, and a decoder makes up to four of one',
)
@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (
            {'decoder': {'type': 'Replace', 'pattern': {'String': 'z'}, 'content': 'z' * 5}},
            'decoder: makes 5 characters of one, allowed: up to 4',
        ),
        (
            {'decoder': {'type': 'Sequence', 'decoders': [EMPTY_SUFFIX] * 2}},
            'decoder: makes 9 characters of one, allowed: up to 4',
        ),
        (
            {'decoder': {'type': 'Sequence', 'decoders': [EMPTY_DELIMITER] * 2}},
            'decoder: makes 9 characters of one, allowed: up to 4',
        ),
        (
            {'added_tokens': [{'id': 0, 'content': 'z' * 257}]},
            'got a token of 257 characters, allowed: up to 256',
        ),
    ],
)
def test_answers_and_tokens_have_a_largest_size(folder, change, reason):
    edit_json(folder / 'tokenizer.json', lambda content: content.update(change))
    assert reason in refusal(folder)


BYTE_LEVEL = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': False}
BERT = {'clean_text': True, 'handle_chinese_chars': True, 'strip_accents': True, 'lowercase': True}


@pytest.mark.attack(
    'A tokenizer with 27 steps, each of which doubles the letters with accents in a question',
    'refused by what the steps before and after the parting of words make of a letter together',
)
@pytest.mark.parametrize(
    ('normalizer', 'pre_tokenizer'),
    [
        (None, [BYTE_LEVEL] * 4),
        ({'type': 'ByteLevel'}, [BYTE_LEVEL] * 3),
        ({'type': 'NFKC'}, [BYTE_LEVEL] * 2),
        ({'type': 'BertNormalizer', **BERT}, [BYTE_LEVEL] * 2),
    ],
)
def test_steps_that_double_some_letters_are_refused(folder, normalizer, pre_tokenizer):
    steps = {'type': 'Sequence', 'pretokenizers': pre_tokenizer}
    change = {'normalizer': normalizer, 'pre_tokenizer': steps}
    edit_json(folder / 'tokenizer.json', lambda content: content.update(change))
    assert 'normalizer and pre_tokenizer: makes' in refusal(folder)


@pytest.mark.attack(
    'A tokenizer of the kind WordPiece that takes minutes to part a word of thousands of letters',
    'refused above 100 letters per word, and 16 that it puts before or after a part',
)
@pytest.mark.parametrize(
    'setting',
    [
        {'max_input_chars_per_word': 4000},
        {'continuing_subword_prefix': '#' * 4000},
        {'end_of_word_suffix': '#' * 17},
    ],
)
def test_long_parts_of_words_are_refused(folder, setting):
    edit_json(folder / 'tokenizer.json', lambda content: content['model'].update(setting))
    assert f'model: {next(iter(setting))}: got' in refusal(folder)


@pytest.mark.attack(
    'A tokenizer with thousands of steps, each of which makes every text a little longer',
    'refused above 8 steps, or by what they add together',
)
def test_a_tokenizer_of_many_steps_is_refused(folder):
    steps = [{'type': 'Prepend', 'prepend': ' .' * 32}] * 30_000
    normalizer = {'type': 'Sequence', 'normalizers': steps}
    edit_json(folder / 'tokenizer.json', lambda content: content.update(normalizer=normalizer))
    assert 'normalizer: got more than 8 steps' in refusal(folder)


@pytest.mark.attack(
    'A tokenizer with a regular expression that takes hours for a question of certain letters',
    'refused: only parts of the expressions in published tokenizers, and words, are allowed',
)
@pytest.mark.parametrize(
    'slow',
    [
        r'(?:[^\x02]?[^\x02]?){13}[\x00\x01]|\w+|[^\w\s]',
        'z+z*(?![ z])',
        r'\A +| +\z',  # looks at the rest of a run of spaces from each of them
        'x' * 5000,
        '',
    ],
)
@pytest.mark.parametrize(
    ('part', 'step'),
    [
        ('pre_tokenizer', {'type': 'Split', 'behavior': 'Removed', 'invert': True}),
        ('normalizer', {'type': 'Replace', 'content': ' '}),
    ],
)
def test_an_unknown_regular_expression_is_refused(folder, slow, part, step):
    step = {'type': 'Sequence', INNER_STEPS[part]: [{**step, 'pattern': {'Regex': slow}}]}
    edit_json(folder / 'tokenizer.json', lambda content: content.update({part: step}))
    assert f'{part}: got the regular expression' in refusal(folder)


@pytest.mark.attack(
    'A tokenizer whose decoder has regular expressions: each answer takes minutes',
    'refused, also those that are allowed elsewhere',
)
def test_a_regular_expression_in_a_decoder_is_refused(folder):
    step = {'type': 'Replace', 'pattern': {'Regex': ' +'}, 'content': ' '}
    edit_json(folder / 'tokenizer.json', lambda content: content.update(decoder=step))
    assert "decoder: got the regular expression ' +', allowed: none" in refusal(folder)


@pytest.mark.parametrize(
    'pattern',
    [
        OUTER_SPACES,
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"  # Qwen2, InternVL
        r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+',
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"  # Llama 3
        r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+',
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
        r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+'  # Mistral
        r'|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*'
        r'|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+',
        r'front left|front right|\w+|[^\w\s]',  # p2d-mini
    ],
)
def test_the_regular_expressions_of_published_models_are_allowed_and_fast(tmp_path, pattern):
    step = {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated'}
    write_json(tmp_path / 'tokenizer.json', {'pre_tokenizer': step})
    check_limits(tmp_path)
    split = pre_tokenizers.Split(Regex(pattern), 'isolated')
    begin = time.monotonic()
    for run in ('a', 'A', ' ', '\n', '.', '1', "'s", ' a', ' .', '\u01c5', '\u0301'):
        for end in ('', 'a', '!'):
            split.pre_tokenize_str(run * 16_000 + end)
    assert time.monotonic() - begin < MAX_SECONDS


@pytest.mark.attack(
    'A chat template that writes a text which the tokenizer takes seconds for',
    'refused: what it writes is tokenized at start, in the process with 3 s and 256 MiB',
)
def test_a_template_that_makes_the_tokenizer_slow_is_refused(folder, monkeypatch):
    monkeypatch.setattr(tokenizer_steps, 'MAX_REPLACE_GROWTH', 72)

    def make_slow(content):
        words = [[word, -1.0] for word in content['model']['vocab']]
        runs = [['z' * length, -1.0] for length in range(1, 257)]
        grow = {'type': 'Replace', 'pattern': {'String': 'z'}, 'content': 'z' * 72}
        content['normalizer'] = grow
        content['model'] = {'type': 'Unigram', 'unk_id': 0, 'vocab': words + runs}
        content['pre_tokenizer'] = None

    edit_json(folder / 'tokenizer.json', make_slow)
    path = folder / 'chat_template.jinja'
    path.write_text('z' * 30_000 + path.read_text())
    assert 'its tokenizer or chat template fails: it takes longer than 3 s' in refusal(folder)


@pytest.mark.attack(
    'A tokenizer of some megabytes whose tokens take gigabytes in memory',
    'refused: all tokens together have at most 2^22 characters, of the kind Unigram 2^21',
)
@pytest.mark.parametrize('kind', ['Unigram', 'BPE', 'added'])
def test_tokens_of_many_characters_are_refused(folder, kind):
    count = 17_000 if kind == 'BPE' else 9_000
    words = [f'{number:0250}' for number in range(count)]

    def edit(content):
        if kind == 'Unigram':
            content['model'] = {
                'type': kind,
                'unk_id': 0,
                'vocab': [[word, 0.0] for word in words],
            }
        elif kind == 'BPE':
            vocabulary = {word: number for number, word in enumerate(words)}
            content['model'] = {'type': kind, 'vocab': vocabulary, 'merges': []}
        else:
            content['model'] = {'type': 'Unigram', 'unk_id': 0, 'vocab': [['a', 0.0]]}
            content['added_tokens'] = [{'id': n, 'content': word} for n, word in enumerate(words)]

    edit_json(folder / 'tokenizer.json', edit)
    assert re.search('got tokens of [0-9]+ characters together, allowed: up to', refusal(folder))


def growing_tokens(count: int, **changes) -> list[dict]:
    """Added tokens of a letter of which NFKC makes 18, and ByteLevel four of each."""
    return [
        {
            'id': 1000 + number,
            'content': f'{number:06}' + '\ufdfa' * 250,
            **dict.fromkeys(('special', 'lstrip', 'rstrip', 'single_word'), False),
            'normalized': True,
            **changes,
        }
        for number in range(count)
    ]


def add_growing_tokens(folder: Path, file: str, tokens: list[dict]) -> None:
    """Add tokens by one of the files that can."""
    steps = [{'type': 'NFKC'}, {'type': 'ByteLevel'}]
    normalizer = {'type': 'Sequence', 'normalizers': steps}
    edit_json(folder / 'tokenizer.json', lambda content: content.update(normalizer=normalizer))
    if file == 'tokenizer.json':
        edit_json(folder / file, lambda content: content['added_tokens'].extend(tokens))
    elif file == 'tokenizer_config.json':
        decoder = {str(token.pop('id')): token for token in tokens}
        edit_json(folder / file, lambda content: content.update(added_tokens_decoder=decoder))
    elif file == 'special_tokens_map.json':
        write_json(folder / file, {'additional_special_tokens': [t['content'] for t in tokens]})
    else:
        write_json(folder / file, {token['content']: token['id'] for token in tokens})


@pytest.mark.attack(
    'A tokenizer of 1.6 MB with 1,000 tokens, of which its normalizer makes 18 million letters',
    'refused: special and added tokens have up to 2^20 letters together after the normalizer',
)
@pytest.mark.parametrize(
    'file',
    ['tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json'],
)
def test_added_tokens_that_grow_are_refused(folder, file):
    add_growing_tokens(folder, file, growing_tokens(200))
    assert re.search(
        'got special and added tokens of 36[0-9]{5} normalized characters together, allowed: up '
        'to 1048576',
        refusal(folder),
    )


def test_added_tokens_that_are_not_normalized_do_not_grow(folder):
    add_growing_tokens(folder, 'tokenizer.json', growing_tokens(200, normalized=False))
    check_limits(folder)


@pytest.mark.attack(
    'A tokenizer that leaves out most merges by chance, and tries each a thousand times',
    'refused: the dropout of a tokenizer is null or 0',
)
def test_dropout_is_refused(folder):
    model = {'type': 'BPE', 'dropout': 0.999, 'vocab': {'a': 0}, 'merges': []}
    edit_json(folder / 'tokenizer.json', lambda content: content.update(model=model))
    assert 'model: dropout: got 0.999, allowed: null or 0' in refusal(folder)


@pytest.mark.parametrize('dropout', [None, 0.0])
def test_no_dropout_is_allowed(tmp_path, dropout):
    write_json(tmp_path / 'tokenizer.json', {'model': {'dropout': dropout}})
    check_limits(tmp_path)


@pytest.mark.attack(
    'A tokenizer of 38 MB with a million tokens and merges, which take 35 s and 1 GB at start',
    'refused above 300,000 tokens and 400,000 merges',
)
@pytest.mark.parametrize(
    ('num_tokens', 'num_merges', 'reason'),
    [
        (300_001, 0, 'got 300001 tokens, allowed: up to 300000'),
        (3, 400_001, 'got 400001 merges, allowed: up to 400000'),
    ],
)
def test_large_tokenizers_are_refused(folder, num_tokens, num_merges, reason):
    vocabulary = {str(number): number for number in range(num_tokens)}
    model = {'type': 'BPE', 'vocab': vocabulary, 'merges': ['a b'] * num_merges}
    edit_json(folder / 'tokenizer.json', lambda content: content.update(model=model))
    assert f'model: {reason}' in refusal(folder)


@pytest.mark.attack(
    'A tokenizer with millions of values that nothing reads, which take 29 s and 2.6 GB at start',
    'refused above 2,097,152 values, and above 20,000 beside vocab, merges and added_tokens',
)
@pytest.mark.parametrize(
    ('unread', 'reason'),
    [
        ([0] * (2 << 20), 'values, allowed: up to 2097152'),
        ([0] * 20_001, 'got a list or object of 20001 entries'),
        ([[0] * 5000] * 4, 'values beside vocab, merges and added_tokens, allowed: up to 20000'),
    ],
)
@pytest.mark.parametrize('in_model', [True, False])
def test_tokenizers_with_many_values_that_nothing_reads_are_refused(
    folder, unread, reason, in_model
):
    def edit(content):
        (content['model'] if in_model else content)['x'] = unread

    edit_json(folder / 'tokenizer.json', edit)
    assert reason in refusal(folder)


@pytest.mark.attack(
    'A tokenizer that makes many tokens of a letter, which is in no question that is tried',
    'a question is tokenised in steps: refused at 64 characters, above 4 tokens for each',
)
def test_a_question_that_grows_is_refused_while_it_is_short(folder):
    marks = [chr(0x20000 + number) for number in range(6)]
    spaces = [
        {'type': 'Metaspace', 'replacement': mark, 'prepend_scheme': 'always', 'split': False}
        for mark in marks
    ]
    letters = {'type': 'Split', 'pattern': {'Regex': r'[^\w\s]'}, 'behavior': 'Isolated'}
    steps = [letters | {'invert': False}, *spaces]

    def edit(content):
        content['model'] |= {'type': 'BPE', 'merges': []}
        content['normalizer'] = {'type': 'NFKC'}
        content['pre_tokenizer'] = {'type': 'Sequence', 'pretokenizers': steps}

    edit_json(folder / 'tokenizer.json', edit)
    config = DriveConfig(model=str(folder), device='cpu', questions=())
    pipeline = DrivingPipeline.from_config(config)
    pipeline.check_questions(['a bus'])
    growth = peak_growth_bytes(lambda: check_fails(pipeline, '\u2026!' * 2000))
    assert growth < 50 << 20


def check_fails(pipeline: DrivingPipeline, question: str) -> None:
    with pytest.raises(ConfigError, match=r'tokens of 64 characters .* allowed: up to 320 in'):
        pipeline.check_questions([question])


@pytest.mark.attack(
    'A tokenizer that takes minutes for a question that none is like that was tried',
    'a question is tokenised in steps: refused as soon as one takes longer than a second',
)
def test_a_question_that_takes_long_is_refused_while_it_is_short(folder, monkeypatch):
    config = DriveConfig(model=str(folder), device='cpu', questions=())
    pipeline = DrivingPipeline.from_config(config)
    lengths = []

    def tokenize(text):  # the tokenizers that are known to do this do not load
        lengths.append(len(text))
        time.sleep(2e-5 * len(text) ** 2)
        return (0,)

    monkeypatch.setattr(pipeline._language_model._family, 'tokenize', tokenize)
    with pytest.raises(ConfigError, match=r'of 256 characters in 1\.3 s, allowed'):
        pipeline.check_questions(['x' * 4000])
    assert lengths == [64, 128, 256]


@pytest.mark.attack(
    'A chat template that is endless only for the pictures of a clip that is not full yet',
    'it is tried at start, for every number of pictures up to a full clip',
)
def test_a_template_is_tried_for_all_clips_at_start(folder):
    path = folder / 'chat_template.jinja'
    count = "{% set n = messages[0]['content'] | length %}{% if n == 19 %}"
    endless = '{% for i in range(99999) %}' * 2 + '{% endfor %}' * 2
    path.write_text(f'{count}{endless}{{% endif %}}{path.read_text()}')
    config = DriveConfig(model=str(folder), device='cpu', frames_per_camera=4)
    with pytest.raises(ConfigError, match='chat template fails: it takes longer than 3 s'):
        DrivingPipeline.from_config(config)


@pytest.mark.parametrize('token', [1 << 30, -1, 2.5, [1, 1 << 70]])
def test_an_end_token_that_no_vocabulary_has_is_refused(folder, token):
    change = {'eos_token_id': token}
    edit_json(folder / 'generation_config.json', lambda content: content.update(change))
    assert 'eos_token_id: got' in refusal(folder)


@pytest.mark.parametrize(
    'normalizer',
    [
        {
            'type': 'Sequence',
            'normalizers': [
                {'type': 'Prepend', 'prepend': '▁'},
                {'type': 'Precompiled', 'precompiled_charsmap': ''},
                {'type': 'Replace', 'pattern': {'Regex': ' {2,}'}, 'content': '▁'},
            ],
        },
        {'type': 'NFC'},
        None,
    ],
)
def test_the_normalizers_of_published_models_are_allowed(tmp_path, normalizer):
    write_json(tmp_path / 'tokenizer.json', {'normalizer': normalizer})
    check_limits(tmp_path)


@pytest.mark.attack(
    'A token of megabytes in tokenizer_config.json or added_tokens.json: an answer of it takes '
    'gigabytes',
    'tokens of all files have up to 256 characters',
)
@pytest.mark.parametrize('file', ['tokenizer_config.json', 'added_tokens.json'])
def test_tokens_of_other_files_are_short(folder, file):
    token = 'A' * 5000
    token_id = len(PreTrainedTokenizerFast.from_pretrained(folder))
    if file == 'added_tokens.json':
        write_json(folder / file, {token: token_id})
    else:
        added = {str(token_id): {'content': token}}
        edit_json(folder / file, lambda content: content.update(added_tokens_decoder=added))
    assert 'got a token of 5000 characters, allowed: up to 256' in refusal(folder)


@pytest.mark.attack(
    'A tokenizer with thousands of special tokens, each compared with all others: minutes',
    'refused above 1,024 special and 20,000 added tokens of all files',
)
@pytest.mark.parametrize('file', ['tokenizer_config.json', 'special_tokens_map.json'])
def test_special_tokens_are_few(folder, file):
    words = [f'<|{number}|>' for number in range(1100)]
    write = edit_json if (folder / file).exists() else write_json
    write(
        folder / file,
        {'extra_special_tokens': words}
        if write is write_json
        else lambda content: content.update(extra_special_tokens=words),
    )
    assert re.search('got 1[0-9]+ special tokens, allowed: up to 1024', refusal(folder))


def test_the_added_tokens_of_all_files_have_a_limit(folder):
    tokens = [{'id': 1000 + n, 'content': f'<{n}>'} for n in range(10_001)]
    edit_json(folder / 'tokenizer.json', lambda c: c.update(added_tokens=tokens))
    write_json(folder / 'added_tokens.json', {f'<<{n}>>': 20_000 + n for n in range(10_000)})
    assert 'got 20001 added tokens, allowed: up to 20000' in refusal(folder)


def test_tokens_and_files_of_absurd_size_are_refused(folder):
    def add_word(content):
        content['model']['vocab']['x' * 5000] = 3

    edit_json(folder / 'tokenizer.json', add_word)
    assert 'got a token of 5000 characters, allowed: up to 256' in refusal(folder)
    with (folder / 'tokenizer.json').open('wb') as file:
        file.truncate(100 << 20)
    assert 'tokenizer.json has 104857600 bytes, allowed: up to 67108864' in refusal(folder)


def test_a_function_is_called_within_its_limits():
    limits = {'limit_s': 0.5, 'memory_bytes': 64 << 20, 'result_bytes': 1000}
    assert run_limited(lambda: {'a': [1, 'ä']}, **limits) == {'a': [1, 'ä']}
    cases = {
        'it takes longer than 0.5 s': lambda: time.sleep(60),
        'it needs more than 64 MiB': lambda: len(bytearray(1 << 30)),
        'its result is larger than 1000 bytes': lambda: 'x' * 2000,
        'modulo by zero': lambda: 1 // 0,
        'its process ended without a result': lambda: __import__('os').abort(),
    }
    for reason, function in cases.items():
        begin = time.monotonic()
        with pytest.raises(LimitError, match=reason):
            run_limited(function, **limits)
        assert time.monotonic() - begin < 5


def test_a_checkpoint_without_any_of_this_is_opened(folder):
    assert open_checkpoint(folder).model_type == 'llava_onevision'
    with pytest.raises(ConfigError):
        open_checkpoint(folder / 'nowhere')


def answer_sweeps(config):
    pipeline = DrivingPipeline.from_config(config)
    for seed in range(8):  # a broken decoder fails at some of the answers
        pipeline.answer(make_frame_set(seed=seed), config.questions)


@pytest.mark.attack(
    'A tokenizer whose library in Rust panics, on loading, on a question or on an answer',
    'one line, as for every other error; what the library writes before is not shown',
)
@pytest.mark.parametrize(
    ('part', 'value', 'reason'),
    [
        (
            'normalizer',
            {'type': 'Precompiled', 'precompiled_charsmap': '/wAAAGFi'},
            'the tokenizer does not load: PanicException',
        ),
        (
            'pre_tokenizer',
            {'type': 'FixedLength', 'length': 0},
            'its tokenizer or chat template fails: chunk size must be non-zero',
        ),
        (
            'decoder',
            {'type': 'Strip', 'content': 'a', 'start': 0, 'stop': 99},
            'its tokenizer failed: index out of bounds',
        ),
    ],
)
def test_a_panic_is_one_line(folder, part, value, reason, capfd):
    edit_json(folder / 'tokenizer.json', lambda content: content.update({part: value}))
    config = DriveConfig(model=str(folder), device='cpu')
    with pytest.raises(P2dError, match=reason) as caught:
        answer_sweeps(config)
    assert '\n' not in str(caught.value)
    if part != 'decoder':
        assert capfd.readouterr().err == ''


def test_what_others_write_while_a_tokenizer_loads_is_shown_afterwards(capfd):
    with held_stderr():
        os.write(2, b'other')
        assert capfd.readouterr().err == ''
    assert capfd.readouterr().err == 'other'


@pytest.mark.attack(
    'Settings of a type that no code expects, or that change what a library returns',
    'one line that names the setting or the file',
)
@pytest.mark.parametrize(
    ('name', 'change', 'reason'),
    [
        ('config.json', {'p2d_mosaic': [['CAM_FRONT', {'a': 1}]]}, 'p2d_mosaic: got .* allowed'),
        (
            'config.json',
            {'vision_config': {'return_dict': False}},
            'return_dict: got False, allowed: true',
        ),
        ('tokenizer.json', {'added_tokens': 5}, 'tokenizer.json does not load: TypeError'),
        (
            'tokenizer.json',
            {'normalizer': {'type': ['a']}},
            'normalizer: got .* allowed: objects of the type',
        ),
        (
            'config.json',
            {'quantization_config': {'quant_method': 'torchao'}},
            'quantization_config: got .*, allowed: none',
        ),
        (
            'config.json',
            {'attn_implementation': 'paged|flash_attention_2'},
            "attn_implementation: got 'paged.flash_attention_2', which asks",
        ),
        ('config.json', {'vision_config': {'patch_size': 0}}, 'does not load: ZeroDivisionError'),
    ],
)
def test_a_setting_that_no_code_expects_is_one_line(folder, name, change, reason, capfd, recwarn):
    def edit(content):
        for key, value in change.items():
            content[key] = {**content[key], **value} if key == 'vision_config' else value

    edit_json(folder / name, edit)
    assert re.search(reason, refusal(folder))
    assert capfd.readouterr().err == ''
    assert not recwarn.list


@pytest.mark.attack(
    'config.json asks for eager attention, which keeps the maps of all patches: gigabytes',
    'kernels and further outputs are not chosen by a checkpoint',
)
@pytest.mark.parametrize('write', [write_llava, write_internvl, write_qwen3_vl_moe])
def test_a_checkpoint_does_not_choose_kernels(tmp_path, write):
    folder = write(tmp_path / 'model')
    keys = ('attn_implementation', '_attn_implementation', '_attn_implementation_internal')

    def edit(content):
        for part in (content, content['text_config'], content['vision_config']):
            part.update({**dict.fromkeys(keys, 'eager'), 'output_attentions': True})
            part['experts_implementation'] = 'batched_mm'

    edit_json(folder / 'config.json', edit)
    model = load_weights(find_family(open_checkpoint(folder)).MODEL_CLASS, folder)
    configs = [module.config for module in model.modules() if hasattr(module, 'config')]
    assert {config._attn_implementation for config in configs} == {'sdpa'}
    assert not any(config.output_attentions for config in configs)
    assert 'batched_mm' not in {config._experts_implementation for config in configs}


@pytest.mark.attack(
    'Settings that make a library read other files, or build a part from each of their entries',
    'refused by name, or by the number of entries',
)
@pytest.mark.parametrize(
    ('name', 'change', 'reason'),
    [
        (
            'tokenizer_config.json',
            {'fast_tokenizer_files': ['../../outside/tokenizer.4.0.json']},
            'fast_tokenizer_files: got .* allowed: none',
        ),
        ('tokenizer_config.json', {'vocab': '/dev/zero'}, "vocab: got '/dev/zero', allowed: none"),
        (
            'tokenizer_config.json',
            {'extra_special_tokens': [f'<{n}>' for n in range(30_000)]},
            'object of 30000 entries, allowed: up to 20000',
        ),
        (
            'config.json',
            {'vision_config': {'model_type': 'swin', 'depths': [1_000_000]}},
            "vision_config.model_type: got 'swin', allowed: clip",
        ),
        (
            'config.json',
            {'configuration_files': ['config.4.0.0.json']},
            'configuration_files: got .*, allowed: none; all settings are in config.json',
        ),
        (
            'config.json',
            {'p2d_mosaic': [[f'CAM_{row}'] for row in range(5)]},
            'p2d_mosaic: got .* up to 4 rows of up to 4',
        ),
        ('config.json', {'num_labels': 1 << 31}, 'num_labels: got .*, allowed: up to 65536'),
        (
            'config.json',
            {'image_grid_pinpoints': [[1, 1]] * 2000},
            'entries, allowed: up to 1024',
        ),
        (
            'config.json',
            {'attn_implementation': {'text_config': 'owner/kernel'}},
            "attn_implementation: got 'owner/kernel', which asks for Python code",
        ),
    ],
)
def test_settings_that_name_files_or_have_many_entries_are_refused(folder, name, change, reason):
    edit_json(folder / name, lambda content: content.update(change))
    assert re.search(reason, refusal(folder))


def test_a_table_of_replacements_that_grows_is_refused(folder):
    table = (4).to_bytes(4, 'little') + bytes(4) + b'x' * 1000 + bytes(1)
    charsmap = base64.b64encode(table).decode()
    normalizer = {'type': 'Precompiled', 'precompiled_charsmap': charsmap}
    edit_json(folder / 'tokenizer.json', lambda content: content.update(normalizer=normalizer))
    assert 'normalizer and pre_tokenizer: makes 1000 characters of one' in refusal(folder)


def test_a_chat_template_that_writes_much_is_refused(folder):
    template = "{{ 'word ' * 10000 }}{{ messages[0].content[-1].text }}"
    (folder / 'chat_template.jinja').write_text(template)
    assert 'it writes 50000 characters around a question' in refusal(folder)


@pytest.mark.attack(
    'a chat template that writes thousands of tokens around each question: a gigabyte per sweep',
    'refused above 4096 tokens',
)
def test_a_chat_template_that_writes_many_tokens_is_refused(folder):
    template = "{{ '?' * 5000 }}{{ messages[0].content[-1].text }}"
    (folder / 'chat_template.jinja').write_text(template)
    assert re.search('it writes 50[0-9]{2} tokens, allowed: up to 4096', refusal(folder))


def test_more_chat_templates_are_refused(folder):
    (folder / 'additional_chat_templates').mkdir()
    assert 'got more chat templates, allowed: one' in refusal(folder)
