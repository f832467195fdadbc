import json

import numpy as np
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError
from p2d_node.image_decoding import decode_frame
from p2d_node.language_model.families.registry import load_family, load_vision_module
from p2d_node.language_model.generate import generate_greedy
from p2d_node.pipeline import DrivingPipeline
from p2d_node.preprocessing import ImageProcessing, normalize, resize_frame
from p2d_node.records import DecodedFrame, NUSCENES_CAMERAS
from p2d_node.token_selection.grid import even_grid
from pillow_levels import assert_close_to_pillow
import pytest
from sweeps import make_frame_set, picture
from tiny_checkpoints import write_qwen2_5_vl, write_qwen2_vl, write_qwen3_vl, write_qwen3_vl_moe
import torch
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
)

CPU = torch.device('cpu')
CAMERAS = ('CAM_FRONT', 'CAM_FRONT_LEFT', 'CAM_FRONT_RIGHT')
QUESTION = 'What should the ego vehicle do next?'
MAX_NEW_TOKENS = 24
GRID = (3, 6)
MODELS = {
    'qwen2_vl': (write_qwen2_vl, Qwen2VLForConditionalGeneration),
    'qwen2_5_vl': (write_qwen2_5_vl, Qwen2_5_VLForConditionalGeneration),
    'qwen3_vl': (write_qwen3_vl, Qwen3VLForConditionalGeneration),
    'qwen3_vl_moe': (write_qwen3_vl_moe, Qwen3VLMoeForConditionalGeneration),
}


@pytest.fixture(scope='module', params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope='module')
def folder(name, tmp_path_factory):
    return MODELS[name][0](tmp_path_factory.mktemp(name))


@pytest.fixture(scope='module')
def processing(folder):
    return ImageProcessing.from_folder(folder)


@pytest.fixture(scope='module')
def family(folder, processing):
    size = (processing.height_px, processing.width_px)
    checkpoint = open_checkpoint(folder)
    return load_family(checkpoint, view_size=size, dtype=torch.float64, device=CPU)


@pytest.fixture(scope='module')
def model(name, folder):
    model_class = MODELS[name][1]
    return model_class.from_pretrained(
        folder, dtype=torch.float64, experts_implementation='eager'
    ).eval()


@pytest.fixture(scope='module')
def pixel_values(processing):
    frames = make_frame_set(CAMERAS).frames.values()
    pictures = [resize_frame(decode_frame(frame), processing) for frame in frames]
    return normalize(pictures, processing, CPU).double()


@pytest.fixture(scope='module')
def patches(folder, processing):
    """Output of the checkpoint's own processor for resized pictures: flat patches and grids."""
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    frames = make_frame_set(CAMERAS).frames.values()
    pictures = [resize_frame(decode_frame(frame), processing) for frame in frames]
    return processor(
        [np.ascontiguousarray(pixels) for pixels in pictures], do_resize=False, return_tensors='pt'
    )


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
@pytest.mark.parametrize('max_pixels', [0, 400])
def test_pixels_are_close_to_those_of_pillow(folder, order, max_pixels):
    rgb = picture(height=900, width=1600)
    reference = Qwen2VLImageProcessorPil.from_pretrained(folder)
    size = {'shortest_edge': 784, 'longest_edge': max_pixels or 1300}
    expected = reference(rgb, size=size, return_tensors='pt')
    processing = ImageProcessing.from_folder(folder, max_pixels=max_pixels)
    pixels = rgb if order == 'rgb' else np.ascontiguousarray(rgb[..., ::-1])
    frame = DecodedFrame('CAM_FRONT', 0, pixels, order)
    actual = normalize([resize_frame(frame, processing)], processing, CPU)
    family = load_family(
        open_checkpoint(folder),
        view_size=(processing.height_px, processing.width_px),
        dtype=torch.float32,
        device=CPU,
    )
    rows, columns = family.grid
    assert expected['image_grid_thw'].tolist() == [[1, rows * 2, columns * 2]]
    flat = family.vision_module._to_patches(actual)
    by_channel = (len(flat), 3, -1, 1)
    assert_close_to_pillow(
        flat.reshape(by_channel), expected['pixel_values'].reshape(by_channel), processing.std
    )


def test_a_minimum_number_of_pixels_enlarges_pictures_like_the_processor(folder, tmp_path):
    settings = json.loads((folder / 'preprocessor_config.json').read_text())
    settings['size'] = {'shortest_edge': 2_000_000, 'longest_edge': 4_000_000}
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(settings))
    processing = ImageProcessing.from_folder(tmp_path)
    reference = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    patches = reference.get_number_of_image_patches(900, 1600)
    assert processing.height_px * processing.width_px == patches * 4 * 4 >= 2_000_000


@pytest.mark.parametrize(
    'limits',
    [{'max_pixels': 200_704}, {'min_pixels': 2_000_000, 'max_pixels': 4_000_000}, {}],
    ids=lambda limits: ' '.join(limits) or 'none',
)
def test_limits_that_settings_leave_out_are_those_of_transformers(folder, tmp_path, limits):
    settings = json.loads((folder / 'preprocessor_config.json').read_text())
    settings.pop('size')
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(settings | limits))
    processing = ImageProcessing.from_folder(tmp_path)
    reference = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    patches = reference.get_number_of_image_patches(900, 1600)
    assert processing.height_px * processing.width_px == patches * 4 * 4


def test_visual_tokens_are_the_models_image_features(family, model, pixel_values, patches):
    with torch.inference_mode():
        expected = model.model.get_image_features(
            patches['pixel_values'].double(), patches['image_grid_thw']
        )
        actual = family.vision_module(pixel_values)
    assert family.grid == GRID
    features = [torch.stack(expected.pooler_output)]
    features += [torch.stack(layer) for layer in getattr(expected, 'deepstack_features', [])]
    torch.testing.assert_close(actual, torch.cat(features, dim=-1), rtol=0, atol=1e-12)


def test_without_pruning_the_answer_equals_that_of_transformers_generate(
    family, model, pixel_values, patches
):
    with torch.inference_mode():
        visual_tokens = family.vision_module(pixel_values)
    prompt = family.build_prompt(QUESTION, CAMERAS)
    input_ids = []
    for segment in prompt.segments:
        input_ids += [*segment, *[model.config.image_token_id] * (GRID[0] * GRID[1])]
    input_ids = torch.tensor([[*input_ids, *prompt.suffix]])
    expected = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        pixel_values=patches['pixel_values'].double(),
        image_grid_thw=patches['image_grid_thw'],
        mm_token_type_ids=(input_ids == model.config.image_token_id).int(),
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
    )[0, input_ids.shape[1] :].tolist()
    inputs = family.embed_prefix(prompt, visual_tokens)
    prefix = family.decoder.resume_prefill(family.decoder.begin_prefill(inputs))
    question = family.embed_text(prompt.suffix, inputs.end_position)
    asked, logits = family.decoder.extend(prefix, [question])
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


def test_the_prompt_keeps_the_delimiters_of_pictures(family, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = family.build_prompt(QUESTION, CAMERAS)
    for segment in prompt.segments:
        assert tokenizer.convert_ids_to_tokens(segment[-1]) == '<|vision_start|>'
    follow = [*prompt.segments[1:], prompt.suffix]
    assert {tokenizer.convert_ids_to_tokens(ids[0]) for ids in follow} == {'<|vision_end|>'}


def test_the_pipeline_answers_with_and_without_missing_views(folder):
    config = DriveConfig(model=str(folder), device='cpu', max_new_tokens=4)
    pipeline = DrivingPipeline.from_config(config)
    # Three views of 18 tokens keep the tokens of six.
    for frame_set, num_kept in ((make_frame_set(), 1), (make_frame_set(CAMERAS), 2)):
        (answer,) = pipeline.answer(frame_set, [QUESTION])
        assert set(answer.tokens_total.values()) == {18}
        assert set(answer.tokens_kept.values()) == {num_kept}
        assert answer.answer
    pipeline.close()
    assert pipeline.views.grid == GRID


def test_the_grid_baseline_uses_rows_and_columns(folder):
    config = DriveConfig(
        model=str(folder),
        device='cpu',
        max_new_tokens=2,
        selector='grid',
        retention_ratio=dict.fromkeys(NUSCENES_CAMERAS, 0.35),
    )
    pipeline = DrivingPipeline.from_config(config)
    (answer,) = pipeline.answer(make_frame_set(), [QUESTION])
    pipeline.close()
    kept = {tuple(indices.tolist()) for indices in answer.keep_indices.values()}
    assert kept == {tuple(even_grid(*GRID, 6))}


def test_fewer_pixels_give_fewer_tokens(folder):
    config = DriveConfig(model=str(folder), device='cpu', max_new_tokens=2, view_max_pixels=400)
    pipeline = DrivingPipeline.from_config(config)
    (answer,) = pipeline.answer(make_frame_set(), [QUESTION])
    pipeline.close()
    assert set(answer.tokens_total.values()) == {3}


def test_an_invalid_picture_size_is_refused(folder):
    checkpoint = open_checkpoint(folder)
    for size, reason in [((24, 50), 'got 24 x 50, allowed: multiples of 8'), (None, 'no picture')]:
        with pytest.raises(ConfigError, match=reason):
            load_family(checkpoint, view_size=size, dtype=torch.float32, device=CPU)
        with pytest.raises(ConfigError, match=reason):
            load_vision_module(checkpoint, size)


def test_settings_without_a_range_of_pixels_are_refused(folder, tmp_path):
    settings = json.loads((folder / 'preprocessor_config.json').read_text())
    settings['size'] = {'height': 56, 'width': 56}
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match='allowed: shortest_edge and longest_edge'):
        ImageProcessing.from_folder(tmp_path)
