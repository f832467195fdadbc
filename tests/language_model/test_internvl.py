import json
import shutil
from types import SimpleNamespace

import numpy as np
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError
from p2d_node.image_decoding import decode_frame
from p2d_node.language_model.families.registry import load_family, load_vision_module
from p2d_node.language_model.generate import generate_greedy
from p2d_node.pipeline import DrivingPipeline
from p2d_node.preprocessing import ImageProcessing, normalize, resize_frame
from p2d_node.records import DecodedFrame
from pillow_levels import assert_close_to_pillow
import pytest
from safetensors.torch import load_file, save_file
from sweeps import make_frame_set, picture
from tiny_checkpoints import write_internvl
import torch
from transformers import (
    AutoTokenizer,
    GotOcr2ImageProcessorPil,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    LlamaConfig,
    Qwen2Config,
)

CPU = torch.device('cpu')
CAMERAS = ('CAM_FRONT', 'CAM_FRONT_LEFT', 'CAM_FRONT_RIGHT')
QUESTION = 'What should the ego vehicle do next?'
MAX_NEW_TOKENS = 24


@pytest.fixture(scope='module', params=[Qwen2Config, LlamaConfig], ids=['qwen2', 'llama'])
def folder(request, tmp_path_factory):
    return write_internvl(tmp_path_factory.mktemp('internvl'), text=request.param)


@pytest.fixture(scope='module')
def family(folder):
    return load_family(open_checkpoint(folder), dtype=torch.float64, device=CPU)


@pytest.fixture(scope='module')
def model(folder):
    return InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float64).eval()


@pytest.fixture(scope='module')
def pixel_values(folder):
    processing = ImageProcessing.from_folder(folder)
    frames = make_frame_set(CAMERAS).frames.values()
    squares = [resize_frame(decode_frame(frame), processing) for frame in frames]
    return normalize(squares, processing, CPU).double()


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
@pytest.mark.parametrize(('height', 'width'), [(900, 1600), (160, 90), (56, 56)])
def test_pixel_values_are_close_to_those_of_pillow(folder, order, height, width):
    rgb = picture(height=height, width=width)
    reference = GotOcr2ImageProcessorPil.from_pretrained(folder, crop_to_patches=False)
    expected = reference(rgb, return_tensors='pt')['pixel_values']
    pixels = rgb if order == 'rgb' else np.ascontiguousarray(rgb[..., ::-1])
    processing = ImageProcessing.from_folder(folder)
    frame = DecodedFrame('CAM_FRONT', 0, pixels, order)
    actual = normalize([resize_frame(frame, processing)], processing, CPU)
    assert_close_to_pillow(actual, expected, processing.std, tall=height > width)


def test_visual_tokens_are_the_models_image_features(family, model, pixel_values):
    with torch.inference_mode():
        expected = model.get_image_features(pixel_values).pooler_output
        actual = family.vision_module(pixel_values)
    assert actual.shape == (len(CAMERAS), family.grid[0] * family.grid[1], 48)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_the_vision_part_alone_gives_the_same_tokens(folder, family, pixel_values):
    module = load_vision_module(open_checkpoint(folder))
    with torch.inference_mode():
        actual = module(pixel_values.float())
        expected = family.vision_module(pixel_values)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


def test_an_incomplete_vision_part_is_refused(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / 'broken')
    weights = load_file(broken / 'model.safetensors')
    name = next(n for n in weights if 'multi_modal_projector.linear_1.weight' in n)
    for changed in ({}, {name: torch.zeros(3, 5)}):
        kept = {n: tensor for n, tensor in weights.items() if n != name} | changed
        save_file(kept, broken / 'model.safetensors', metadata={'format': 'pt'})
        with pytest.raises(ConfigError, match=r'1 weights are missing or .*, the first is .*lin'):
            load_vision_module(open_checkpoint(broken))


def test_features_of_an_inner_layer_equal_the_models(folder, model, pixel_values, tmp_path):
    copied = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float64)
    copied.config.vision_feature_layer = -2
    copied.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    family = load_family(open_checkpoint(tmp_path), dtype=torch.float64, device=CPU)
    with torch.inference_mode():
        expected = model.get_image_features(pixel_values, vision_feature_layer=-2).pooler_output
        actual = family.vision_module(pixel_values)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_tokens_are_in_the_order_of_their_pixels(tmp_path):
    # Without layers a token depends only on its own patches.
    folder = write_internvl(tmp_path, vision_layers=0)
    family = load_family(open_checkpoint(folder), dtype=torch.float64, device=CPU)
    rows, columns = family.grid
    blank = torch.zeros(1, 3, 56, 56, dtype=torch.float64)
    for row, column in [(0, 0), (0, 3), (2, 1), (3, 2)]:
        spotted = blank.clone()
        height, width = 56 // rows, 56 // columns
        spotted[..., row * height + 9, column * width + 3] = 1.0
        with torch.inference_mode():
            difference = family.vision_module(spotted) - family.vision_module(blank)
        changed = difference[0].abs().amax(dim=-1).nonzero().flatten().tolist()
        assert changed == [row * columns + column]


def test_the_vision_module_exports_as_one_graph(family, pixel_values):
    family.vision_module.vision_tower.config._attn_implementation = 'eager'
    program = torch.export.export(family.vision_module, (pixel_values,), strict=False)
    with torch.inference_mode():
        torch.testing.assert_close(
            program.module()(pixel_values), family.vision_module(pixel_values)
        )


def test_the_prompt_equals_the_processors(family, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = family.build_prompt(QUESTION, CAMERAS)
    context = tokenizer.convert_tokens_to_ids('<IMG_CONTEXT>')
    token_ids = []
    for segment in prompt.segments:
        token_ids += [*segment, *[context] * 16]
    token_ids += prompt.suffix
    # The processor does not load without torchvision; this is its rule for one placeholder.
    settings = SimpleNamespace(
        image_token=tokenizer.context_image_token,
        image_seq_length=16,
        start_image_token=tokenizer.start_image_token,
        end_image_token=tokenizer.end_image_token,
    )
    picture = InternVLProcessor.replace_image_token(settings, {'num_patches': [1]}, 0)
    text = (
        f'<|im_start|>user {picture * 3}These three images are the '
        'front view, front left view and front right view of the ego vehicle. '
        f'{QUESTION}<|im_end|><|im_start|>assistant '
    )
    assert token_ids == tokenizer(text)['input_ids']


def test_without_pruning_the_answer_equals_that_of_transformers_generate(
    family, model, pixel_values
):
    visual_tokens = family.vision_module(pixel_values)
    prompt = family.build_prompt(QUESTION, CAMERAS)
    input_ids = []
    for segment in prompt.segments:
        input_ids += [*segment, *[model.config.image_token_id] * visual_tokens.shape[1]]
    input_ids = torch.tensor([[*input_ids, *prompt.suffix]])
    expected = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        pixel_values=pixel_values,
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
    )[0, input_ids.shape[1] :].tolist()
    prefix = family.decoder.resume_prefill(
        family.decoder.begin_prefill(family.embed_prefix(prompt, visual_tokens))
    )
    end_position = input_ids.shape[1] - len(prompt.suffix)
    asked, logits = family.decoder.extend(prefix, [family.embed_text(prompt.suffix, end_position)])
    (ours,) = generate_greedy(
        family.decoder,
        asked,
        logits,
        embed=family.embed,
        max_new_tokens=MAX_NEW_TOKENS,
        end_token_ids=family.end_token_ids,
    )
    assert list(ours.token_ids) == expected
    assert len(set(expected)) > 3  # not one repeated token


def test_the_pipeline_answers(folder):
    config = DriveConfig(model=str(folder), device='cpu', max_new_tokens=4)
    pipeline = DrivingPipeline.from_config(config)
    (answer,) = pipeline.answer(make_frame_set(), [QUESTION])
    pipeline.close()
    assert set(answer.tokens_total.values()) == {16}
    assert set(answer.tokens_kept.values()) == {1}
    assert answer.answer


def test_a_tokenizer_without_image_delimiters_is_refused(tmp_path):
    folder = write_internvl(tmp_path)
    tokenizer = json.loads((folder / 'tokenizer.json').read_text())
    added = tokenizer['added_tokens']
    tokenizer['added_tokens'] = [token for token in added if token['content'] != '<img>']
    del tokenizer['model']['vocab']['<img>']
    (folder / 'tokenizer.json').write_text(json.dumps(tokenizer))
    path = folder / 'tokenizer_config.json'
    settings = json.loads(path.read_text())
    del settings['extra_special_tokens']
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="does not know '<img>'"):
        load_family(open_checkpoint(folder), dtype=torch.float32, device=CPU)
