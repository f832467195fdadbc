import ast
from contextlib import suppress
import gc
import json
from pathlib import Path
import shutil
import weakref

from p2d_node.checkpoints import devices
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.devices import choose_device, choose_dtype, multiplies_bfloat16
from p2d_node.config import DriveConfig
from p2d_node.errors import BackendUnavailableError, ConfigError
from p2d_node.language_model.families.registry import find_family, load_family
from p2d_node.language_model.prompt import describe_missing_views, describe_views, split_at_images
from p2d_node.pipeline import DrivingPipeline
from p2d_node.preprocessing import ImageProcessing
from p2d_node.records import NUSCENES_CAMERAS
import pytest
from safetensors.torch import load_file, save_file
from tiny_checkpoints import WRITERS
import torch
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

CPU = torch.device('cpu')
ROOT = Path(__file__).parents[2]


@pytest.fixture
def broken(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / 'broken')


def load(folder, view_size=None):
    checkpoint = open_checkpoint(folder)
    return load_family(checkpoint, view_size=view_size, dtype=torch.float32, device=CPU)


def test_the_name_of_a_model_is_that_of_its_folder(tiny_checkpoint, tmp_path, monkeypatch):
    """Its engines are in a folder of this name."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / 'own')
    (folder / 'inner').mkdir()
    monkeypatch.chdir(folder)
    for path in ('.', 'inner/..', folder / 'inner' / '..', folder):
        assert open_checkpoint(path).folder.name == 'own'


def test_random_weights_are_called_untrained(tiny_checkpoint):
    assert open_checkpoint(tiny_checkpoint).name == 'tiny (untrained)'


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"model: got '.*nowhere', which is not a folder"):
        open_checkpoint(tmp_path / 'nowhere')


@pytest.mark.attack(
    'a pickle in a checkpoint has a name with commands for a shell',
    'the message has the command that converts pickles, without the name',
)
def test_a_folder_without_weights_is_refused(broken):
    (broken / 'model.safetensors').unlink()
    (broken / 'pytorch_model$(touch x).bin').write_bytes(b'pickle')
    with pytest.raises(ConfigError, match=r'1 pickled \*\.bin files, allowed: safet') as raised:
        open_checkpoint(broken)
    assert 'touch' not in str(raised.value)


def test_a_folder_without_config_is_refused(broken):
    (broken / 'config.json').unlink()
    with pytest.raises(
        ConfigError, match=r'model: .*config\.json is missing; copy the whole checkpoint'
    ):
        open_checkpoint(broken)


@pytest.mark.parametrize('text', ['{', '[]'])
def test_a_config_that_is_not_an_object_is_refused(broken, text):
    (broken / 'config.json').write_text(text)
    with pytest.raises(ConfigError, match=r'config\.json is not'):
        open_checkpoint(broken)


def test_an_unknown_family_is_refused_with_the_known_ones(broken):
    config = json.loads((broken / 'config.json').read_text())
    (broken / 'config.json').write_text(json.dumps(config | {'model_type': 'mamba'}))
    with pytest.raises(ConfigError, match=r"family 'mamba', allowed: llava_onevision.*CONTRIB"):
        find_family(open_checkpoint(broken))


@pytest.mark.parametrize(
    ('model_type', 'source'), [('llava_llama', 'drivemm'), ('internvl_chat', 'drivelmm-o1')]
)
def test_a_published_checkpoint_names_the_command_that_converts_it(broken, model_type, source):
    config = json.loads((broken / 'config.json').read_text())
    (broken / 'config.json').write_text(json.dumps(config | {'model_type': model_type}))
    (broken / 'model.safetensors').unlink()  # it may have pickles, which import names in turn
    with pytest.raises(ConfigError, match=f'p2d import-checkpoint --from {source} {broken} --out'):
        open_checkpoint(broken)


def test_missing_weights_are_counted_and_the_first_is_named(broken):
    weights = load_file(broken / 'model.safetensors')
    dropped = sorted(name for name in weights if 'layers.1.self_attn' in name)
    kept = {name: tensor for name, tensor in weights.items() if name not in dropped}
    save_file(kept, broken / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ConfigError, match=f'{len(dropped)} weights are missing'):
        load(broken)


def test_weights_of_another_shape_are_refused(broken):
    weights = load_file(broken / 'model.safetensors')
    name = next(n for n in weights if n.endswith('linear_1.weight'))
    weights[name] = torch.zeros(3, 5)
    save_file(weights, broken / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ConfigError, match='1 weights are missing or have other shapes'):
        load(broken)


@pytest.mark.parametrize('name', WRITERS)
def test_every_family_says_which_weights_are_missing_or_do_not_fit(name, tmp_path, capfd):
    folder = WRITERS[name](tmp_path)
    weights = load_file(folder / 'model.safetensors')
    dropped = next(n for n in weights if 'layers.1.self_attn.q_proj.weight' in n)
    kept = {n: tensor for n, tensor in weights.items() if n != dropped}
    save_file(kept, folder / 'model.safetensors', metadata={'format': 'pt'})
    processing = ImageProcessing.from_folder(folder)
    size = (processing.height_px, processing.width_px)
    message = r'1 weights are missing or have other shapes .*, the first is .*q_proj'
    with pytest.raises(ConfigError, match=message):
        load(folder, size)
    wrong = kept | {dropped: torch.zeros(2, 2)}
    save_file(wrong, folder / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ConfigError, match=message):
        load(folder, size)
    assert capfd.readouterr().err.count('\n') <= 1  # transformers would print a table


@pytest.mark.parametrize('name', WRITERS)
def test_vision_weights_are_freed_where_an_engine_takes_their_place(name, tmp_path):
    folder = WRITERS[name](tmp_path)
    processing = ImageProcessing.from_folder(folder)
    family = load(folder, (processing.height_px, processing.width_px))
    parameter = weakref.ref(next(family.vision_module.parameters()))
    family.release_vision_module()
    gc.collect()
    assert parameter() is None


@pytest.mark.parametrize('name', ['llava_llama', 'internvl_qwen2'])
def test_pictures_of_another_size_than_the_encoders_are_refused(name, tmp_path):
    folder = WRITERS[name](tmp_path)
    with pytest.raises(ConfigError, match='makes pictures of 99 x 99, its vision encoder takes'):
        load(folder, (99, 99))


def test_a_text_model_with_sliding_windows_is_refused(broken):
    config = json.loads((broken / 'config.json').read_text())
    config['text_config'] |= {'use_sliding_window': True, 'sliding_window': 8}
    config['text_config'] |= {'layer_types': ['full_attention', 'sliding_attention']}
    (broken / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ConfigError, match='sliding-window attention, allowed: full attention'):
        load(broken)


def test_a_missing_shard_is_refused(broken):
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(broken)
    (broken / 'model.safetensors').unlink()
    model.save_pretrained(broken, max_shard_size='100KB')
    shards = sorted(broken.glob('model-*.safetensors'))
    assert len(shards) > 2
    load(broken)
    shards[1].unlink()
    with pytest.raises(ConfigError, match=f'{shards[1].name} is missing, which'):
        load(broken)


def test_a_truncated_weights_file_is_refused(broken):
    data = (broken / 'model.safetensors').read_bytes()
    (broken / 'model.safetensors').write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match='not a complete safetensors file'):
        load(broken)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(broken):
    tokenizer = AutoTokenizer.from_pretrained(broken)
    tokenizer.add_tokens(['<camera>'])
    tokenizer.save_pretrained(broken)
    with pytest.raises(ConfigError, match=r"the token '<camera>' with id \d+, allowed: ids below"):
        load(broken)


@pytest.mark.parametrize('name', ['llava_qwen2', 'qwen2_5_vl'])
def test_embeddings_are_tied_as_the_text_config_says(name, tmp_path):
    folder = WRITERS[name](tmp_path / 'tied')
    config = json.loads((folder / 'config.json').read_text())
    config.pop('tie_word_embeddings', None)
    config['text_config']['tie_word_embeddings'] = True
    (folder / 'config.json').write_text(json.dumps(config))
    weights = load_file(folder / 'model.safetensors')
    heads = [name for name in weights if 'lm_head' in name]
    assert heads
    kept = {name: weight for name, weight in weights.items() if name not in heads}
    save_file(kept, folder / 'model.safetensors', metadata={'format': 'pt'})
    family = load(folder, view_size=(112, 112) if 'qwen2_5' in name else None)
    model = family._model
    assert torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)


def test_a_tokenizer_without_a_chat_template_is_refused(broken):
    (broken / 'chat_template.jinja').unlink()
    with pytest.raises(ConfigError, match='no chat template'):
        load(broken)


TEXT_ONLY = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + m['content'] }}{% endfor %}"


@pytest.mark.parametrize('name', ['chat_template.json', 'processor_config.json'])
@pytest.mark.parametrize('of_tokenizer', [None, TEXT_ONLY])
def test_a_processors_chat_template_is_used_as_transformers_does(broken, name, of_tokenizer):
    template = (broken / 'chat_template.jinja').read_text()
    prompt = load(broken).build_prompt('Why?', NUSCENES_CAMERAS)
    (broken / 'chat_template.jinja').unlink()
    (broken / name).write_text(json.dumps({'chat_template': template}))
    path = broken / 'tokenizer_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'chat_template': of_tokenizer}))
    assert load(broken).build_prompt('Why?', NUSCENES_CAMERAS) == prompt


def test_a_chat_template_that_is_not_a_text_is_refused(broken):
    (broken / 'chat_template.json').write_text('{"chat_template": 3}')
    with pytest.raises(ConfigError, match=r'chat_template.json: chat_template: got 3, allowed'):
        load(broken)


@pytest.mark.parametrize(
    ('template', 'reason'),
    [
        ('{% for m in messages %}', 'its chat template fails: Unexpected end of template'),
        ("{{ raise_exception('no user') }}", 'its chat template fails: no user'),
        ('hello', 'its chat template fails: it writes the question 0 times'),
        (
            '{{ messages[0].content[-1].text }}',
            'its chat template gives 0 image placeholders for 6 views',
        ),
        (TEXT_ONLY, 'its chat template fails: TypeError: .*; copy the chat template for pictures'),
        ('{{ 1 // 0 }}', 'its chat template fails: ZeroDivisionError'),
    ],
)
def test_a_chat_template_that_does_not_work_is_found_at_start(broken, template, reason):
    (broken / 'chat_template.jinja').write_text(template)
    with pytest.raises(ConfigError, match=reason):
        DrivingPipeline.from_config(DriveConfig(model=str(broken), questions=()))


@pytest.mark.parametrize(
    ('name', 'key', 'value'),
    [
        ('config.json', 'model_type', ['llava_onevision']),
        ('config.json', 'text_config', {'hidden_size': '256'}),
        ('config.json', 'vision_config', 'siglip'),
        ('preprocessor_config.json', 'image_mean', None),
        ('preprocessor_config.json', 'size', {'height': 'tall', 'width': 126}),
        ('preprocessor_config.json', None, []),
        ('tokenizer_config.json', None, []),
        ('generation_config.json', None, []),
        ('generation_config.json', 'eos_token_id', 'two'),
    ],
)
def test_settings_of_a_wrong_kind_name_the_checkpoint(broken, name, key, value):
    path = broken / name
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(value if key is None else settings | {key: value}))
    with pytest.raises(ConfigError, match=str(broken)) as caught:
        DrivingPipeline.from_config(DriveConfig(model=str(broken)))
    assert len(str(caught.value).splitlines()) == 1


def test_a_cut_generation_config_is_refused_as_answers_would_not_end(broken):
    (broken / 'generation_config.json').write_text('{"eos_token_id": [1, ')
    with pytest.raises(ConfigError, match=r'generation_config\.json is not valid JSON'):
        load(broken)


@pytest.mark.attack(
    'A tokenizer in another format than tokenizer.json, which no check reads',
    'refused: tokenizer.json is needed',
)
@pytest.mark.parametrize('other', ['tokenizer.model', 'tiktoken.model', 'tekken.json', 'a.txt'])
def test_a_missing_tokenizer_is_refused(broken, other):
    (broken / 'tokenizer.json').unlink()
    (broken / other).write_bytes(b'YQ== 0\nYg== 1\n')
    with pytest.raises(ConfigError, match=r'tokenizer\.json is missing; copy it, or save'):
        load(broken)


def test_devices_and_dtypes_are_checked():
    assert choose_device('cpu') == CPU
    assert choose_dtype('auto', torch.device('cuda')) is torch.bfloat16
    assert choose_dtype('float64', CPU) is torch.float64
    for name in ('gpu', 'meta', 'cuda:x'):
        with pytest.raises(ConfigError, match=f"device: got '{name}'"):
            choose_device(name)
    with pytest.raises(ConfigError, match=r"device: got 'cuda:1'.*CUDA_VISIBLE_DEVICES=1"):
        choose_device('cuda:1')
    with pytest.raises(ConfigError, match=r"device: got 'cpu:3', allowed: .*; set device to cpu"):
        choose_device('cpu:3')


@pytest.mark.parametrize(
    ('capabilities', 'is_fast'),
    [
        ({'avx512_bf16': True, 'amx_bf16': False}, True),
        ({'avx512_bf16': False, 'amx_bf16': True}, True),
        ({'avx512_bf16': False, 'avx512_f': True}, False),
        ({'sve': True}, False),
    ],
)
def test_the_dtype_on_a_cpu_is_bfloat16_where_it_multiplies_it(monkeypatch, capabilities, is_fast):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities)
    assert multiplies_bfloat16() is is_fast
    monkeypatch.setattr(devices, 'multiplies_bfloat16', multiplies_bfloat16)
    assert choose_dtype('auto', CPU) is (torch.bfloat16 if is_fast else torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU here')
def test_a_gpu_that_is_not_there_is_said():
    with pytest.raises(BackendUnavailableError, match='torch sees no GPU; set device to cpu'):
        choose_device('cuda')


def test_views_are_described_in_the_order_they_are_shown():
    assert describe_views(NUSCENES_CAMERAS) == (
        'These six images are the front view, front left view, front right view, back view, '
        'back left view and back right view of the ego vehicle.'
    )
    assert describe_views(['CAM_BACK']) == 'This image is the back view of the ego vehicle.'


def test_the_views_that_are_black_in_a_stitched_picture_are_named():
    one, two = ['CAM_FRONT'], ['CAM_FRONT', 'CAM_BACK_LEFT']
    assert describe_missing_views(one) == 'In this image the front view is missing.'
    assert describe_missing_views(two) == (
        'In this image the front view and the back left view are missing.'
    )


def test_a_prompt_is_cut_at_its_pictures():
    prompt = split_at_images([5, 9, 9, 6, 9, 7], image_token_id=9, num_views=3)
    assert prompt.segments == ((5,), (), (6,))
    assert prompt.suffix == (7,)
    with pytest.raises(ValueError, match='3 image placeholders for 6 views'):
        split_at_images([5, 9, 9, 6, 9, 7], image_token_id=9, num_views=6)


RUNS = """
import pathlib
pathlib.Path(__file__).with_name('has_run').touch()
class Tokenizer: pass
"""


@pytest.mark.parametrize(
    ('file', 'settings', 'key'),
    [
        ('tokenizer_config.json', {'auto_map': {'AutoTokenizer': ['evil.Tokenizer']}}, 'auto_map'),
        ('config.json', {'auto_map': {'AutoConfig': 'evil.Tokenizer'}}, 'auto_map'),
        ('config.json', {'text_config': {'auto_map': {'AutoModel': 'evil.M'}}}, 'auto_map'),
        ('processor_config.json', {'auto_map': {'AutoProcessor': 'o/r--m.C'}}, 'auto_map'),
        (
            'tokenizer_config.json',
            {'tokenizer_class': 'owner/repo--evil.Tokenizer'},
            'tokenizer_c',
        ),
        ('config.json', {'_attn_implementation': 'owner/kernel'}, '_attn_implementation'),
        ('config.json', {'text_config': {'attn_implementation': 'owner/kernel@v1'}}, 'attn_'),
        ('generation_config.json', {'custom_pipelines': {'a': {}}}, 'custom_pipelines'),
    ],
)
def test_a_checkpoint_that_asks_for_code_is_refused_before_anything_runs(
    tiny_checkpoint, tmp_path, monkeypatch, file, settings, key
):
    monkeypatch.setattr('builtins.input', lambda *_: pytest.fail('it asked on stdin'))
    folder = tmp_path / 'tiny'
    shutil.copytree(tiny_checkpoint, folder)
    (folder / 'evil.py').write_text(RUNS)
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | settings))
    with pytest.raises(ConfigError, match=f'{file}: {key}.*: got .* is never run') as caught:
        DrivingPipeline.from_config(DriveConfig(model=str(folder), device='cpu'))
    assert '\n' not in str(caught.value)
    assert not (folder / 'has_run').exists()


def test_a_tokenizer_with_code_is_never_run_even_if_the_check_is_gone(
    tiny_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr('p2d_node.checkpoints.checkpoint.refuse_custom_code', lambda _folder: None)
    monkeypatch.setattr('builtins.input', lambda *_: pytest.fail('it asked on stdin'))
    folder = tmp_path / 'tiny'
    shutil.copytree(tiny_checkpoint, folder)
    (folder / 'evil.py').write_text(RUNS)
    path = folder / 'tokenizer_config.json'
    code = {'auto_map': {'AutoTokenizer': ['evil.Tokenizer', None]}, 'tokenizer_class': 'Nothing'}
    path.write_text(json.dumps(json.loads(path.read_text()) | code))
    with suppress(ConfigError):
        DrivingPipeline.from_config(DriveConfig(model=str(folder), device='cpu')).close()
    assert not (folder / 'has_run').exists()


@pytest.mark.attack(
    'A checkpoint asks for Python code of its own, in a benchmark or in the training of a model',
    'whatever loads a part of a checkpoint says that no code of it runs, and stays offline',
)
@pytest.mark.parametrize('folder', ['src', 'ros2_ws/src', 'benchmarks', 'examples'])
def test_nothing_loads_a_checkpoint_with_its_code(folder):
    calls = [
        (path.name, {word.arg: ast.unparse(word.value) for word in node.keywords})
        for path in (ROOT / folder).rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith('.from_pretrained')
    ]
    assert len(calls) >= {'src': 3, 'benchmarks': 3}.get(folder, 0)
    for name, words in calls:
        assert words.get('trust_remote_code') == 'False', name
        assert words.get('local_files_only') == 'True', name
