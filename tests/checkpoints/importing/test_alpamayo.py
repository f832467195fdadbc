import json
import shutil

from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.importing.alpamayo import CAMERA_NAMES, make_layout, plan_import
from p2d_node.checkpoints.importing.importer import import_checkpoint
from p2d_node.checkpoints.importing.streaming import Source
from p2d_node.checkpoints.weight_files import find_weight_files
from p2d_node.cli.main import main
from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError
from p2d_node.pipeline import DrivingPipeline
from p2d_node.preprocessing import ImageProcessing
from p2d_node.prompt_layout import PROMPT_KEY, PromptLayout
from published import ALPAMAYO_MARKS, TRAJECTORY_MARKS, write_alpamayo, write_json
import pytest
from safetensors.torch import load_file, save_file
from sweeps import make_frame_set
from tiny_qwen3 import load, TEMPLATE, write_published_qwen3_vl
import torch
from transformers import AutoTokenizer

FIRST = 'model-00001-of-00003.safetensors'
CLIP = ('CAM_FRONT_LEFT', 'CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT')


def ignore_progress(done, total):
    assert 0 < done <= total


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    return write_published_qwen3_vl(tmp_path_factory.mktemp('base') / 'Qwen3-VL')


@pytest.fixture(scope='module')
def whole(base, tmp_path_factory):
    return write_alpamayo(tmp_path_factory.mktemp('whole') / 'Alpamayo', base)


@pytest.fixture
def published(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / 'Alpamayo')


@pytest.fixture
def copied_base(base, tmp_path):
    return shutil.copytree(base, tmp_path / 'Qwen3-VL')


@pytest.fixture(scope='module')
def plan(whole, base):
    return plan_import(whole, base)


@pytest.fixture(scope='module')
def folder(plan, tmp_path_factory):
    out = tmp_path_factory.mktemp('models') / 'alpamayo'
    import_checkpoint(plan, out, on_progress=ignore_progress)
    return out


def test_weights_are_those_of_the_backbone(folder, whole):
    published, imported = (Source(find_weight_files(path)) for path in (whole, folder))
    names = [name for name in published.names if name.startswith('vlm.')]
    assert sorted(f'vlm.{name}' for name in imported.names) == sorted(names)
    for name in names:
        assert torch.equal(imported.read(name.removeprefix('vlm.')), published.read(name))


def test_tokens_have_the_ids_of_the_authors(folder, base):
    tokenizer, qwen = (AutoTokenizer.from_pretrained(path) for path in (folder, base))
    ids, old = tokenizer.get_vocab(), qwen.get_vocab()
    assert {token: ids[token] for token in old} == old
    assert [ids[f'<i{number}>'] for number in range(768)] == list(
        range(len(qwen), len(qwen) + 768)
    )
    new = [f'<|{name}|>' for name in ALPAMAYO_MARKS if name != 'image_pad']
    start = len(qwen) + 768
    assert [ids[mark] for mark in new] == list(range(start, start + len(new)))


def test_answers_end_with_the_turn_or_the_answer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = tokenizer.convert_tokens_to_ids(['<|im_end|>', '<|answer_end|>'])
    assert load(folder).end_token_ids == tuple(sorted(ends))


def test_pictures_have_the_size_of_the_authors(folder):
    processing = ImageProcessing.from_folder(folder)
    # 10 x 18 tokens of 32 x 32 pixels
    assert (processing.height_px, processing.width_px) == (320, 576)
    settings = json.loads((folder / 'preprocessor_config.json').read_text())
    assert settings['size'] == {'shortest_edge': 163840, 'longest_edge': 196608}


def test_the_layout_is_read_back_with_cameras_in_the_order_of_ids(folder):
    layout = open_checkpoint(folder).prompt_layout
    assert layout == make_layout(marked=True)
    assert list(layout.camera_names) == list(CAMERA_NAMES)
    assert (layout.frames_per_camera, layout.frame_interval_ms) == (4, 100)
    ordered = ('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_BACK_LEFT', 'CAM_BACK')
    assert layout.in_order(('CAM_BACK', 'CAM_BACK_LEFT', 'CAM_FRONT', 'CAM_FRONT_LEFT')) == ordered
    layout.check_cameras([name for name in CAMERA_NAMES if name.startswith('CAM_')])
    layout.check_cameras([name for name in CAMERA_NAMES if name.startswith('camera_')])


def test_the_prompt_is_that_of_the_authors(folder):
    family = load(folder)
    prompt = family.build_prompt('Is it wet?', CLIP, 'Turn left.')
    picture = '<|image_pad|>'
    decode = family._tokenizer.decode
    text = picture.join(map(decode, [*prompt.segments, prompt.suffix]))
    shown = f'<|vision_start|>{picture}<|vision_end|>'
    assert text == (
        '<|im_start|>system\nYou are a driving assistant that generates safe and accurate '
        'actions.<|im_end|>\n<|im_start|>user\n'
        f'Front left camera: frame 0 {shown}frame 1 {shown}'
        f'Front camera: frame 0 {shown}frame 1 {shown}'
        '<|route_start|>Turn left.<|route_end|>'
        '<|question_start|>Is it wet?<|question_end|><|im_end|>\n'
        '<|im_start|>assistant\n<|answer_start|>'
    )
    assert '<|question_start|>' in family.find_special_tokens('Is <|question_start|> here?')


def test_the_imported_folder_answers(folder):
    pipeline = DrivingPipeline.from_config(
        DriveConfig(model=str(folder), device='cpu', dtype='float32', max_new_tokens=3)
    )
    (answer,) = pipeline.answer(make_frame_set(), ['Is it wet?'])
    pipeline.close()
    assert answer.num_generated_tokens >= 1
    assert '<|' not in answer.answer


def test_a_note_counts_what_is_left_out(plan):
    assert plan.notes == [
        'left out, as answers do not need it: action_out_proj (2 weights), expert (2 weights)',
        'the settings of the backbone are those of Qwen3-VL; the checkpoint names '
        "'Qwen/Qwen3-VL-8B-Instruct'",
    ]


def test_without_marks_questions_are_asked_without_them(base, tmp_path):
    published = write_alpamayo(tmp_path / 'Alpamayo', base, add_special_tokens=False)
    plan = plan_import(published, base)
    assert plan.notes[-1].startswith('its vocabulary has no marks of questions and answers')
    out = tmp_path / 'out'
    import_checkpoint(plan, out, on_progress=ignore_progress)
    layout = open_checkpoint(out).prompt_layout
    assert (layout.question, layout.answer, layout.context) == ('{question}', '', '{context} ')
    tokenizer = AutoTokenizer.from_pretrained(out)
    marks = [f'<|{name}|>' for name in TRAJECTORY_MARKS]
    num_tokens = len(tokenizer)
    assert tokenizer.convert_tokens_to_ids(marks) == list(range(num_tokens - 6, num_tokens))
    family = load(out)
    assert family.end_token_ids == (tokenizer.convert_tokens_to_ids('<|im_end|>'),)
    text = tokenizer.decode(family.build_prompt('Wet?', CLIP).suffix)
    assert text == '<|vision_end|>Wet?<|im_end|>\n<|im_start|>assistant\n'


def test_an_output_layer_that_is_the_table_of_embeddings_is_written(tmp_path):
    base = write_published_qwen3_vl(tmp_path / 'base', tied=True)
    published = write_alpamayo(tmp_path / 'Alpamayo', base)
    out = tmp_path / 'out'
    import_checkpoint(plan_import(published, base), out, on_progress=ignore_progress)
    family = load(out)
    assert torch.equal(family.decoder._lm_head.weight, family._embed_tokens.weight)


def test_the_shape_of_the_backbone_may_stand_in_the_checkpoint(published, copied_base, tmp_path):
    own = json.loads((copied_base / 'config.json').read_text())
    edit(published / 'config.json', {name: own[name] for name in ('text_config', 'vision_config')})
    edit(copied_base / 'config.json', {'text_config': {**own['text_config'], 'hidden_size': 96}})
    out = tmp_path / 'out'
    plan = plan_import(published, copied_base)
    import_checkpoint(plan, out, on_progress=ignore_progress)
    assert len(plan.notes) == 1
    assert json.loads((out / 'config.json').read_text())['text_config']['hidden_size'] == 48


def edit(path, changes):
    write_json(path, json.loads(path.read_text()) | changes)


def change(published, edit_weights):
    weights = load_file(published / FIRST)
    edit_weights(weights)
    save_file(weights, published / FIRST, metadata={'format': 'pt'})


@pytest.mark.parametrize(
    ('edit_weights', 'message'),
    [
        (
            lambda w: w.update({'vlm.model.extra.weight': torch.zeros(2)}),
            '0 weights are missing, 1 weights are not expected: model.extra.weight',
        ),
        (
            lambda w: w.update(
                {n: t[:-1].clone() for n, t in w.items() if n.endswith('fc1.bias')}
            ),
            'weights are of another shape than config.json says: model.visual',
        ),
    ],
    ids=['surplus', 'shape'],
)
def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    published, base, tmp_path, edit_weights, message
):
    change(published, edit_weights)
    with pytest.raises(ConfigError, match=message):
        import_checkpoint(plan_import(published, base), tmp_path / 'out', on_progress=None)
    assert not (tmp_path / 'out').exists()


def test_a_missing_weight_is_named(published, base, tmp_path):
    name = 'vlm.model.visual.patch_embed.proj.bias'
    change(published, lambda w: w.pop(name))
    index = json.loads((published / 'model.safetensors.index.json').read_text())
    index['weight_map'].pop(name)
    write_json(published / 'model.safetensors.index.json', index)
    with pytest.raises(ConfigError, match=r'1 weights are missing: model\.visual\.patch_embed'):
        import_checkpoint(plan_import(published, base), tmp_path / 'out', on_progress=None)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model_type': 'alpamayo_r1'}, "model_type: got 'alpamayo_r1', allowed: 'alpamayo1_5'"),
        ({'vlm_backend': 'cosmos'}, "vlm_backend: got 'cosmos', allowed: 'qwenvl3'"),
        ({'add_special_tokens': 'yes'}, 'add_special_tokens: got .yes., allowed: True, False'),
        ({'traj_vocab_size': -1}, 'traj_vocab_size: got -1, allowed: 1 to 16384, or null'),
        ({'traj_vocab_size': 1 << 20}, 'traj_vocab_size: got 1048576, allowed: 1 to 16384'),
        ({'traj_vocab_size': 700}, 'base: with its tokenizer there are .* name the Qwen3-VL'),
        ({'vocab_size': 7}, 'base: with its tokenizer there are .* vocab_size 7 and'),
        ({'traj_token_start_idx': 7}, 'traj_token_start_idx 7; name the Qwen3-VL that it was'),
        ({'add_special_tokens': False}, 'base: with its tokenizer there are'),
    ],
)
def test_a_config_that_cannot_be_imported_is_refused(published, base, changes, message):
    edit(published / 'config.json', changes)
    with pytest.raises(ConfigError, match=message) as caught:
        plan_import(published, base)
    assert '\n' not in str(caught.value)


@pytest.mark.attack(
    'A base for p2d import-checkpoint whose chat template is a link to a secret of the user',
    'refused: the secret would be in the new checkpoint, which may be passed on',
)
def test_a_base_with_a_link_is_refused(published, copied_base, tmp_path):
    secret = tmp_path / 'id_rsa'
    secret.write_text('secret')
    for name in ('chat_template.jinja', 'tokenizer_config.json'):
        (copied_base / name).unlink(missing_ok=True)
        (copied_base / name).symlink_to(secret)
        with pytest.raises(ConfigError, match=rf'base: .*{name} .*link'):
            plan_import(published, copied_base)
        (copied_base / name).unlink()


def test_a_checkpoint_without_embeddings_is_refused(published, base):
    name = 'vlm.model.language_model.embed_tokens.weight'
    index = json.loads((published / 'model.safetensors.index.json').read_text())
    file = published / index['weight_map'].pop(name)
    weights = load_file(file)
    weights.pop(name)
    save_file(weights, file, metadata={'format': 'pt'})
    write_json(published / 'model.safetensors.index.json', index)
    with pytest.raises(ConfigError, match=f'the checkpoint has no tensor {name}'):
        plan_import(published, base)


def test_a_base_is_needed(published):
    with pytest.raises(ConfigError, match=r'base: got none, needed: .*Qwen/Qwen3-VL-8B-Inst'):
        plan_import(published, None)


def refusal_of_base(published, base):
    with pytest.raises(ConfigError) as caught:
        plan_import(published, base)
    return str(caught.value)


def test_a_base_of_another_family_is_refused(published, copied_base):
    edit(copied_base / 'config.json', {'model_type': 'qwen2_vl'})
    assert "got family 'qwen2_vl', allowed: qwen3_vl" in refusal_of_base(published, copied_base)


def test_a_base_that_has_the_tokens_already_is_refused(published, folder):
    assert 'its tokenizer has tokens of Alpamayo already' in refusal_of_base(published, folder)


def test_a_base_without_picture_settings_is_refused(published, copied_base):
    (copied_base / 'preprocessor_config.json').unlink()
    assert 'has no preprocessor_config.json' in refusal_of_base(published, copied_base)


def test_a_base_without_a_tokenizer_is_refused(published, copied_base):
    (copied_base / 'tokenizer.json').unlink()
    assert 'tokenizer.json is missing; copy it' in refusal_of_base(published, copied_base)


def test_picture_settings_of_another_model_are_refused(published, copied_base):
    edit(copied_base / 'preprocessor_config.json', {'patch_size': 14})
    assert 'patch_size of its picture settings: got 14' in refusal_of_base(published, copied_base)


def test_a_base_without_a_chat_template_is_refused(published, copied_base):
    (copied_base / 'chat_template.json').unlink()
    edit(copied_base / 'tokenizer_config.json', {'chat_template': None})
    assert 'has no chat template' in refusal_of_base(published, copied_base)


def test_settings_of_pictures_may_lie_in_the_processors_file(published, copied_base, tmp_path):
    path = copied_base / 'preprocessor_config.json'
    content = json.loads(path.read_text()) | {'min_pixels': 4, 'max_pixels': 9}
    write_json(copied_base / 'processor_config.json', {'image_processor': content})
    path.unlink()
    plan = plan_import(published, copied_base)
    assert plan.image_processor['size'] == {'shortest_edge': 163840, 'longest_edge': 196608}
    assert 'max_pixels' not in plan.image_processor
    assert plan.tokenizer.chat_template == TEMPLATE


def test_the_command_imports_and_the_node_names_it(published, base, tmp_path, capsys):
    out = tmp_path / 'models' / 'alpamayo'
    with pytest.raises(ConfigError, match=r'checkpoint --from alpamayo1\.5 --base QWEN3_VL '):
        open_checkpoint(published)
    command = ['import-checkpoint', '--from', 'alpamayo1.5', str(published), '--out', str(out)]
    assert main(command) == 2
    assert 'base: got none, needed' in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, '--base', str(base)]) == 0
    printed = capsys.readouterr().out
    assert 'qwen3_vl' in printed
    assert 'left out, as answers do not need it: action_out_proj (2 weights), expert (2' in printed
    assert PromptLayout.from_config(json.loads((out / 'config.json').read_text())) is not None
    assert PROMPT_KEY in json.loads((out / 'config.json').read_text())
