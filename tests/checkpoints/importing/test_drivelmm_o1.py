import json
import random
import sys
import time

from definitions import drivelmm_o1_views, internlm2_logits
from memory import peak_growth_bytes
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.importing import internvl_weights
from p2d_node.checkpoints.importing.drivelmm_o1 import plan_import
from p2d_node.checkpoints.importing.importer import import_checkpoint
from p2d_node.checkpoints.importing.internlm2_tokenizer import load_tokenizer
from p2d_node.checkpoints.importing.internvl_weights import merge_lora
from p2d_node.cli.main import main
from p2d_node.errors import BackendUnavailableError, ConfigError, P2dError
from p2d_node.language_model.families.registry import load_family
from p2d_node.preprocessing import ImageProcessing
from p2d_node.records import NUSCENES_CAMERAS
from published import (
    DATA,
    drivelmm_o1_weights,
    internvl_config,
    merged,
    unwrapped,
    write_adapter,
    write_drivelmm_o1,
    write_json,
)
import pytest
from safetensors.torch import load_file
from sentencepiece.sentencepiece_model_pb2 import ModelProto
import torch
from transformers import AutoTokenizer

CPU = torch.device('cpu')
CONFIG = internvl_config()
NO_LORA = {'use_backbone_lora': 0, 'use_llm_lora': 0}
CONTROL, USER_DEFINED = ModelProto.SentencePiece.CONTROL, ModelProto.SentencePiece.USER_DEFINED
VISION_LORA = 'vision_model.base_model.model'


@pytest.fixture(scope='module')
def weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return drivelmm_o1_weights(CONFIG)


@pytest.fixture(scope='module')
def pixel_values():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 3, 112, 112, generator=generator, dtype=torch.float64)


def import_to(out, plan):
    import_checkpoint(plan, out, on_progress=lambda *_: None, shard_bytes=100_000)
    return out


def load(folder):
    return load_family(open_checkpoint(folder), dtype=torch.float64, device=CPU)


@pytest.fixture(scope='module')
def folder(weights, tmp_path_factory):
    parent = tmp_path_factory.mktemp('o1')
    return import_to(parent / 'out', plan_import(write_drivelmm_o1(parent / 'in', weights)))


@pytest.fixture(scope='module')
def family(folder):
    return load(folder)


@torch.inference_mode()
def our_logits(family, prompt, visual_tokens):
    inputs = family.embed_prefix(prompt, visual_tokens)
    prefix = family.decoder.resume_prefill(family.decoder.begin_prefill(inputs))
    text = family.embed_text(prompt.suffix, inputs.end_position)
    return family.decoder.extend(prefix, [text])[1][0, 0]


def logits_of_the_definition(prompt, views, weights):
    table = weights['language_model.base_model.model.model.tok_embeddings.weight']
    (segment,) = prompt.segments
    sequence = torch.cat([table[list(segment)], views[0], table[list(prompt.suffix)]])
    return internlm2_logits(sequence, weights, CONFIG['llm_config'])[-1]


def difference(family, weights, pixel_values) -> float:
    """How far logits and visual tokens are from what the unmerged published weights compute."""
    expected = drivelmm_o1_views(pixel_values, weights, CONFIG)
    prompt = family.build_prompt('What is ahead?', NUSCENES_CAMERAS)
    logits = logits_of_the_definition(prompt, expected, weights)
    assert logits.std() > 0.1
    with torch.inference_mode():
        views = family.vision_module(pixel_values)
    far = (our_logits(family, prompt, expected) - logits).abs().max()
    return max(float((views - expected).abs().max()), float(far))


def test_visual_tokens_are_those_of_the_published_weights(family, weights, pixel_values):
    expected = drivelmm_o1_views(pixel_values, weights, CONFIG)
    with torch.inference_mode():
        actual = family.vision_module(pixel_values)
    assert actual.shape == (1, 16, 64)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_logits_are_those_of_the_published_weights(family, weights, pixel_values):
    # transformers normalises and turns in float32.
    assert difference(family, weights, pixel_values) < 1e-5


def test_a_merged_checkpoint_gives_the_same(weights, pixel_values, tmp_path):
    published = write_drivelmm_o1(tmp_path / 'in', merged(weights), **NO_LORA)
    family = load(import_to(tmp_path / 'out', plan_import(published)))
    assert difference(family, weights, pixel_values) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('prefix', ['base_model.model.language_model.', 'base_model.model.'])
@pytest.mark.parametrize(
    'settings', [{}, {'use_rslora': True, 'lora_alpha': 4}], ids=['plain', 'rslora']
)
def test_an_adapter_and_its_base_give_the_same(weights, pixel_values, tmp_path, prefix, settings):
    without_vision = {
        name: tensor.zero_() if '.lora_' in name and VISION_LORA in name else tensor
        for name, tensor in ((name, tensor.clone()) for name, tensor in weights.items())
    }
    base = write_drivelmm_o1(tmp_path / 'base', unwrapped(weights), **NO_LORA)
    adapter = write_adapter(tmp_path / 'adapter', weights, prefix=prefix, **settings)
    family = load(import_to(tmp_path / 'out', plan_import(adapter, base)))
    assert difference(family, without_vision, pixel_values) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'wrong_order'), [('split_thirds', (1, 0, 2)), ('split_groups', (0, 2, 1))]
)
def test_parts_of_the_fused_projection_that_are_exchanged_would_be_seen(
    weights, pixel_values, tmp_path, monkeypatch, name, wrong_order
):
    split = getattr(internvl_weights, name)

    def exchange(*args):
        parts = split(*args)
        return [parts[index] for index in wrong_order]

    monkeypatch.setattr(internvl_weights, name, exchange)
    plan = plan_import(write_drivelmm_o1(tmp_path / 'in', weights))
    assert difference(load(import_to(tmp_path / 'out', plan)), weights, pixel_values) > 1e-2


def test_queries_that_are_not_grouped_by_key_would_be_seen(
    weights, pixel_values, tmp_path, monkeypatch
):
    def all_queries_first(num_heads, num_shared, tensors):
        (fused,) = tensors
        size = len(fused) // (num_heads + 2 * num_shared)
        return [t.clone() for t in fused.split([num_heads * size, *[num_shared * size] * 2])]

    monkeypatch.setattr(internvl_weights, 'split_groups', all_queries_first)
    plan = plan_import(write_drivelmm_o1(tmp_path / 'in', weights))
    assert difference(load(import_to(tmp_path / 'out', plan)), weights, pixel_values) > 1e-2


def test_lora_that_is_left_out_would_be_seen(weights, pixel_values, tmp_path):
    published = write_drivelmm_o1(tmp_path / 'in', unwrapped(weights), **NO_LORA)
    family = load(import_to(tmp_path / 'out', plan_import(published)))
    assert difference(family, weights, pixel_values) > 1e-2


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_lora_is_merged_with_one_rounding(dtype):
    weight, down, up = (torch.randn(s).to(dtype) for s in ((24, 16), (4, 16), (24, 4)))
    exact = weight.double() + 2 * up.double() @ down.double()
    actual = merge_lora(weight, down, up, 2.0)
    assert actual.dtype == dtype
    spacing = torch.finfo(dtype).eps * exact.abs()
    assert ((actual.double() - exact).abs() <= 0.5 * spacing + 2e-6).all()


def test_every_weight_has_one_place(folder, weights):
    imported = {}
    for path in folder.glob('*.safetensors'):
        imported |= load_file(path)
    num_linear = sum('.lora_A.' in name for name in weights)
    num_fused = sum('qkv.base_layer' in name for name in weights)
    assert len(imported) == len(weights) - 2 * num_linear + 2 * num_fused
    assert all(tensor.dtype == torch.float64 for tensor in imported.values())


def test_the_prompt_is_the_one_of_the_authors(family, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = family.build_prompt('What is ahead?', NUSCENES_CAMERAS)
    (segment,) = prompt.segments
    text = tokenizer.decode(segment)
    assert text.startswith('<s><|im_start|>system\n你是书生·万象，英文名是InternVL，')
    assert text.endswith(
        '联合开发的多模态大语言模型。<|im_end|>\n<|im_start|>user\n'
        'When answering the question based on the provided image, follow a structured and logical '
        'reasoning process. Organize your response using the format, ensuring each step builds '
        'upon the previous one and clearly explains how the image(s) contribute to the solution. '
        'Your answer should be structured as Reasoning Steps: (step by step reasoning) Final '
        'Answer: (final answer) \n Question: \n<img>'
    )
    assert tokenizer.decode(prompt.suffix) == (
        '</img>\nWhat is ahead?<|im_end|>\n<|im_start|>assistant\n'
    )
    assert tokenizer.convert_tokens_to_ids('<|im_end|>') in family.end_token_ids
    assert tokenizer.convert_tokens_to_ids('<IMG_CONTEXT>') == 702


def test_the_picture_is_squashed_as_the_authors_do(folder):
    processing = ImageProcessing.from_folder(folder)
    assert (processing.height_px, processing.width_px, processing.fit) == (112, 112, 'squash')
    assert processing.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize('name', ['plain', 'space', 'squeezed'])
def test_texts_become_the_ids_that_sentencepiece_gives(name, tmp_path):
    (tmp_path / 'tokenizer.model').write_bytes((DATA / f'{name}.model').read_bytes())
    write_json(tmp_path / 'tokenizer_config.json', {})
    tokenizer = load_tokenizer(tmp_path)
    for case in json.loads((DATA / f'{name}.json').read_text()):
        assert tokenizer.encode(case['text'], add_special_tokens=False) == case['ids']
        assert tokenizer.decode(case['ids']) == case.get('back', case['text'])


def damaged_models(data: bytes) -> dict[str, bytes]:
    """Cuts, changed bytes and inserted bytes all over a SentencePiece model."""
    models = {'empty': b'', 'random': random.Random(0).randbytes(400)}
    for number in range(24):
        rng = random.Random(number)
        place = rng.randrange(len(data))
        changed = bytearray(data)
        changed[place] ^= 1 << rng.randrange(8)
        models[f'cut at {place}'] = data[:place]
        models[f'bit at {place}'] = bytes(changed)
        models[f'inserted at {place}'] = data[:place] + rng.randbytes(5) + data[place:]
    return models


def outcome(folder) -> str:
    """The message of a refusal; empty if a text can be encoded."""
    try:
        tokenizer = load_tokenizer(folder)
    except ConfigError as err:
        return str(err)
    assert tokenizer.encode('What is ahead?')
    return ''


def test_a_damaged_model_gives_one_clear_error_or_a_tokenizer(tmp_path):
    write_json(tmp_path / 'tokenizer_config.json', {})
    refusals = []
    for model in damaged_models((DATA / 'plain.model').read_bytes()).values():
        (tmp_path / 'tokenizer.model').write_bytes(model)
        refusals.append(outcome(tmp_path))
    refusals = list(filter(None, refusals))
    assert len(refusals) > 40
    assert all(str(tmp_path) in line and len(line.splitlines()) == 1 for line in refusals)


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (lambda model: model.trainer_spec.Clear(), 'is of kind 1, allowed: 2, BPE'),
        (lambda model: setattr(model.pieces[0], 'type', 1), 'has no unknown token'),
        (lambda model: setattr(model.pieces[5], 'piece', ''), 'has a piece without text'),
        (lambda model: setattr(model.pieces[5], 'piece', 'a' * 5000), 'has a piece of 5000 char'),
        (
            lambda model: setattr(model.normalizer_spec, 'precompiled_charsmap', b'\xff' * 9),
            'the tokenizer does not load: ',
        ),
    ],
)
def test_a_model_that_is_not_one_of_internlm2_is_refused(tmp_path, change, reason):
    model = ModelProto.FromString((DATA / 'plain.model').read_bytes())
    assert model.pieces[0].type == model.pieces[0].UNKNOWN
    change(model)
    (tmp_path / 'tokenizer.model').write_bytes(model.SerializeToString())
    write_json(tmp_path / 'tokenizer_config.json', {})
    with pytest.raises(ConfigError, match=reason):
        load_tokenizer(tmp_path)


@pytest.mark.attack(
    'A tokenizer.model of 8 GB that takes no room on the disk (a sparse file)',
    'refused by the size of the file',
)
def test_a_sparse_tokenizer_model_is_refused_by_its_size(tmp_path):
    path = tmp_path / 'tokenizer.model'
    path.write_bytes((DATA / 'plain.model').read_bytes())
    with path.open('r+b') as file:
        file.truncate(8 << 30)
    write_json(tmp_path / 'tokenizer_config.json', {})
    with pytest.raises(P2dError, match='8589934592 bytes, allowed: at most 8388608'):
        load_tokenizer(tmp_path)


@pytest.mark.attack(
    'A tokenizer.model of a few megabytes whose pieces are runs of one letter, which form in '
    'millions of ways',
    'refused above 200,000 pieces, or 500,000 ways',
)
@pytest.mark.parametrize(
    ('num_letters', 'longest', 'reason'),
    [(40, 256, 'form in more than 500000 ways'), (200_001, 1, 'pieces, allowed: up to 200000')],
)
def test_pieces_that_form_in_many_ways_are_refused(tmp_path, num_letters, longest, reason):
    model = ModelProto.FromString((DATA / 'plain.model').read_bytes())
    for letter in range(num_letters):
        for length in range(1, longest + 1):
            model.pieces.add(piece=chr(0x20000 + letter) * length, score=-length)
    (tmp_path / 'tokenizer.model').write_bytes(model.SerializeToString())
    del model
    write_json(tmp_path / 'tokenizer_config.json', {})

    def refuse() -> None:
        with pytest.raises(ConfigError, match=reason):
            load_tokenizer(tmp_path)

    assert peak_growth_bytes(refuse) < 512 << 20


def write_pieces(folder, count, length, kind):
    """Write a tokenizer with `count` pieces of a kind that is searched for in texts."""
    model = ModelProto.FromString((DATA / 'plain.model').read_bytes())
    for number in range(count):
        model.pieces.add(piece=f'{number:06}'[::-1] + 'z' * (length - 6), type=kind)
    (folder / 'tokenizer.model').write_bytes(model.SerializeToString())
    write_json(folder / 'tokenizer_config.json', {})


@pytest.mark.attack(
    'A tokenizer.model of 100 kB with thousands of control symbols, for each of which the library '
    'builds its search for all of them again',
    'they are added at once: those of each file in less than a second',
)
@pytest.mark.parametrize('name', ['tokenizer.model', 'tokenizer_config.json'])
def test_many_added_tokens_are_added_at_once(tmp_path, name):
    count = 3000
    write_pieces(tmp_path, count if name == 'tokenizer.model' else 0, 20, CONTROL)
    if name == 'tokenizer_config.json':
        first = len(ModelProto.FromString((tmp_path / 'tokenizer.model').read_bytes()).pieces)
        added = {str(first + n): {'content': f'{n:06}'[::-1] + 'z' * 14} for n in range(count)}
        write_json(tmp_path / name, {'added_tokens_decoder': added})
    begin = time.monotonic()
    tokenizer = load_tokenizer(tmp_path)
    assert time.monotonic() - begin < 2.0
    assert len(tokenizer.encode('000000' + 'z' * 14, add_special_tokens=False)) == 1


@pytest.mark.attack(
    'A tokenizer.model whose pieces are all control symbols or symbols of a user',
    'refused as added tokens are: above 20,000, or 2^20 letters together',
)
@pytest.mark.parametrize(
    ('count', 'length', 'reason'),
    [
        (20_000, 6, r'got 2000[0-9] added tokens, allowed: up to 20000'),
        (4200, 250, 'tokens of 10[0-9]+ normalized characters together, allowed: up to 1048576'),
    ],
)
@pytest.mark.parametrize('kind', [CONTROL, USER_DEFINED])
def test_pieces_that_are_added_tokens_are_counted(tmp_path, count, length, reason, kind):
    write_pieces(tmp_path, count, length, kind)
    with pytest.raises(ConfigError, match=reason):
        load_tokenizer(tmp_path)


def test_a_missing_sentencepiece_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    (tmp_path / 'tokenizer.model').write_bytes((DATA / 'plain.model').read_bytes())
    monkeypatch.setitem(sys.modules, 'sentencepiece.sentencepiece_model_pb2', None)
    reason = 'tokenizer.model needs sentencepiece, .* pip install --upgrade sentencepiece protobuf'
    with pytest.raises(BackendUnavailableError, match=reason):
        load_tokenizer(tmp_path)


def test_the_command_says_what_it_assumes(weights, tmp_path, capsys):
    published = write_drivelmm_o1(tmp_path / 'in', weights)
    out = tmp_path / 'out'
    command = ['import-checkpoint', '--from', 'drivelmm-o1', str(published), '--out', str(out)]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert 'LoRA was merged into 18 layers' in text
    assert 'CAM_FRONT_LEFT CAM_FRONT CAM_FRONT_RIGHT / CAM_BACK_RIGHT CAM_BACK' in text
    assert 'the authors do not document their order' in text
    assert json.loads((out / 'config.json').read_text())['p2d_mosaic'] == [
        ['CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT'],
        ['CAM_BACK_RIGHT', 'CAM_BACK', 'CAM_BACK_LEFT'],
    ]


def refusal(folder, base=None) -> str:
    with pytest.raises(ConfigError) as refused:
        import_to(folder.parent / 'out', plan_import(folder, base))
    assert not (folder.parent / 'out').exists()
    return str(refused.value)


def test_half_a_lora_is_not_expected(weights, tmp_path):
    name = next(n for n in weights if 'wqkv.lora_B' in n)
    half = {n: tensor for n, tensor in weights.items() if n != name}
    message = refusal(write_drivelmm_o1(tmp_path / 'in', half))
    assert f'1 weights are not expected: {name.replace("_B.", "_A.")}' in message


def test_a_weight_that_is_there_twice_is_not_expected(weights, tmp_path):
    name = next(n for n in weights if 'wqkv.base_layer' in n)
    twice = weights | {name.replace('.base_layer', ''): weights[name].clone()}
    message = refusal(write_drivelmm_o1(tmp_path / 'in', twice))
    assert f'1 weights are not expected: {name.replace(".base_layer", "")}' in message


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'use_llm_lora': 8}, 'use_llm_lora: got 8, but .* has rank 4'),
        ({'use_backbone_lora': 0}, 'use_backbone_lora: got 0, but .* has rank 4'),
        ({'ps_version': 'v1'}, "ps_version: got 'v1', allowed: 'v2'"),
        ({'select_layer': -4}, 'select_layer: got -4, allowed: -1'),
        ({'template': 'Hermes-2'}, "template: got 'Hermes-2', allowed: 'internvl2_5'"),
        ({'force_image_size': 448}, 'force_image_size: got 448, allowed: None, 112'),
        ({'llm_config': {'architectures': ['Qwen2ForCausalLM']}}, 'Qwen2ForCausalLM'),
        ({'llm_config': CONFIG['llm_config'] | {'num_key_value_heads': 5}}, 'does not fit config'),
        (
            {'llm_config': CONFIG['llm_config'] | {'num_key_value_heads': 0}},
            'by zero; copy the config',
        ),
        ({'llm_config': CONFIG['llm_config'] | {'num_key_value_heads': None}}, 'does not fit'),
        (
            {'llm_config': CONFIG['llm_config'] | {'rope_scaling': ['dynamic']}},
            'rope_scaling: got a list, allowed: an object',
        ),
        ({'vision_config': []}, 'vision_config: got a list, allowed: an object'),
        ({'vision_config': {'image_size': 112}}, 'config.json has no hidden_size'),
        ({'llm_config': CONFIG['llm_config'] | {'num_key_value_heads': 4}}, 'of another shape'),
    ],
)
def test_a_config_of_another_kind_is_refused(weights, tmp_path, changes, message):
    published = write_drivelmm_o1(tmp_path / 'in', weights, **changes)
    with pytest.raises(ConfigError, match=message):
        import_checkpoint(plan_import(published), tmp_path / 'out', on_progress=lambda *_: None)


def test_adapters_that_are_not_plain_lora_are_refused(weights, tmp_path):
    base = write_drivelmm_o1(tmp_path / 'base', unwrapped(weights), **NO_LORA)
    for number, changes in enumerate(
        [{'use_dora': True}, {'alpha_pattern': {'wo': 3}}, {'bias': 'all'}, {'peft_type': 'IA3'}]
    ):
        adapter = write_adapter(
            tmp_path / str(number), weights, prefix='base_model.model.', **changes
        )
        (field,) = changes
        assert f'config.json: {field}: got' in refusal(adapter, base)


@pytest.mark.parametrize('field', ['r', 'lora_alpha'])
@pytest.mark.parametrize('value', [0, 'x', None, 1e30])
def test_a_scale_that_no_adapter_has_is_refused(weights, tmp_path, field, value):
    base = write_drivelmm_o1(tmp_path / 'base', unwrapped(weights), **NO_LORA)
    adapter = write_adapter(
        tmp_path / 'adapter', weights, prefix='base_model.model.', **{field: value}
    )
    message = refusal(adapter, base)
    assert f'adapter_config.json: {field}: got {value!r}, allowed: above 0 to 1000000' in message


def test_an_adapter_needs_its_base_and_nothing_else_has_one(weights, tmp_path):
    adapter = write_adapter(tmp_path / 'adapter', weights, prefix='base_model.model.')
    assert f'base: got none, but {adapter} is a LoRA adapter; name the model' in refusal(adapter)
    base = write_drivelmm_o1(tmp_path / 'base', unwrapped(weights), **NO_LORA)
    assert f'base: got {str(base)!r}, allowed only with a LoRA adapter' in refusal(base, base)


def test_a_tokenizer_of_another_kind_is_refused(weights, tmp_path):
    published = write_drivelmm_o1(tmp_path / 'in', weights)
    pieces = b'\n\x07\n\x05<unk>'  # one piece; the kind of the model left at its default, Unigram
    (published / 'tokenizer.model').write_bytes(pieces)
    assert 'tokenizer.model is of kind 1, allowed: 2, BPE' in refusal(published)


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ('', 'tokenizer.json is not valid JSON'),
        ('{}', 'in: the tokenizer does not load: '),
        ('[]', 'tokenizer.json is not a JSON object'),
        ('{"version": "1.0", "trunc', 'tokenizer.json is not valid JSON'),
        (
            '{"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}',
            'in: the tokenizer does not load: PanicException',
        ),
    ],
)
def test_a_broken_tokenizer_json_is_refused(weights, tmp_path, content, reason, capfd):
    published = write_drivelmm_o1(tmp_path / 'in', weights)
    (published / 'tokenizer.json').write_text(content)
    assert reason in refusal(published)
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize(
    ('added', 'reason'),
    [
        (['<img>'], 'added_tokens_decoder: got a list, allowed: an object'),
        ({'3': {'special': True}}, "got an added token '3': {'special': True}, allowed: a num"),
        ({'3': '<img>'}, "got an added token '3': '<img>', allowed: a number"),
        ({'three': {'content': '<img>'}}, "got an added token 'three': {'content': '<img>'}"),
    ],
)
def test_added_tokens_that_are_none_are_refused(weights, tmp_path, added, reason):
    published = write_drivelmm_o1(tmp_path / 'in', weights)
    write_json(published / 'tokenizer_config.json', {'added_tokens_decoder': added})
    assert f'tokenizer_config.json: {reason}' in refusal(published)


def test_an_added_token_without_a_number_is_refused(weights, tmp_path):
    published = write_drivelmm_o1(tmp_path / 'in', weights)
    write_json(published / 'added_tokens.json', {'<img>': 'three'})
    assert "added_tokens.json: got an added token 'three': {'content': '<img>'" in refusal(
        published
    )


def test_a_broken_tokenizer_is_refused(weights, tmp_path):
    published = write_drivelmm_o1(tmp_path / 'in', weights)
    data = (published / 'tokenizer.model').read_bytes()
    (published / 'tokenizer.model').write_bytes(data[: len(data) // 2])
    assert 'the tokenizer does not load' in refusal(published)
    (published / 'tokenizer.model').unlink()
    assert 'no tokenizer.model and no tokenizer.json' in refusal(published)


def test_an_adapter_that_is_no_matrix_is_refused(weights, tmp_path):
    name = next(n for n in weights if n.endswith('lora_A.default.weight') or 'lora_A' in n)
    changed = {**weights, name: torch.tensor(1.0)}
    assert 'allowed: a matrix' in refusal(write_drivelmm_o1(tmp_path / 'in', changed))


@pytest.mark.attack(
    'LoRA of some kilobytes beside a weight of one number, which torch extends to gigabytes',
    'refused by the shapes: the weight is as large as the product of the LoRA',
)
@pytest.mark.parametrize('index', [(slice(1), slice(1)), (slice(None), slice(1)), (0,)])
def test_lora_that_extends_its_weight_is_refused(weights, tmp_path, index):
    name = next(n for n in weights if 'feed_forward.w1.base_layer' in n)
    changed = {**weights, name: weights[name][index].clone()}
    published = write_drivelmm_o1(tmp_path / 'in', changed)
    with pytest.raises(ConfigError) as refused:
        plan_import(published)
    message = str(refused.value)
    assert message.startswith(f'got {name} {list(changed[name].shape)}, ')
    assert message.endswith('[rank, columns], [rows, rank]; copy the checkpoint again')
    assert '\n' not in message
