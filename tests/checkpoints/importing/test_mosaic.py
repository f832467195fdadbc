from dataclasses import replace
import json
import shutil

from definitions import drivelmm_o1_views, internlm2_logits
import numpy as np
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.importing import drivelmm_o1
from p2d_node.checkpoints.importing.importer import import_checkpoint
from p2d_node.cli.main import main
from p2d_node.config import DriveConfig, EncoderConfig
from p2d_node.errors import ConfigError
from p2d_node.image_decoding import decode_frame
from p2d_node.language_model.families.registry import load_family
from p2d_node.language_model.prompt import describe_missing_views
from p2d_node.pipeline import DrivingPipeline
from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.ros.overlay import draw_kept_tokens
from p2d_node.token_selection import select_tokens
from p2d_node.views import make_views, Mosaic
from PIL import Image
from published import drivelmm_o1_weights, internvl_config, write_drivelmm_o1, write_json
import pytest
from sweeps import make_frame_set
import torch

CPU = torch.device('cpu')
CONFIG = internvl_config()
QUESTION = 'What is ahead?'
REGIONS = {
    'CAM_FRONT_LEFT': [0, 4],
    'CAM_FRONT': [1, 2, 5, 6],
    'CAM_FRONT_RIGHT': [3, 7],
    'CAM_BACK_RIGHT': [8, 12],
    'CAM_BACK': [9, 10, 13, 14],
    'CAM_BACK_LEFT': [11, 15],
}
"""Tokens of 4 x 4 whose middle lies in a view of 2 x 3."""


@pytest.fixture(scope='module')
def weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return drivelmm_o1_weights(CONFIG)


@pytest.fixture(scope='module')
def folder(weights, tmp_path_factory):
    parent = tmp_path_factory.mktemp('o1')
    plan = drivelmm_o1.plan_import(write_drivelmm_o1(parent / 'in', weights))
    import_checkpoint(plan, parent / 'out', on_progress=lambda *_: None)
    return parent / 'out'


def stitched_views(rows, grid):
    return make_views(Mosaic(rows), grid, padded=False, device=CPU, model='o1')


def answer_of(folder, frame_set, ratios, dtype='float32', **changes):
    config = DriveConfig(
        model=str(folder),
        device='cpu',
        dtype=dtype,
        max_new_tokens=1,
        retention_ratio=dict.fromkeys(NUSCENES_CAMERAS, 1.0) | ratios,
        **changes,
    )
    pipeline = DrivingPipeline.from_config(config)
    (answer,) = pipeline.answer(frame_set, [QUESTION])
    pipeline.close()
    return answer


def stitched_pixel_values(frame_set):
    """The authors' preprocessing of six views side by side, from its definition."""
    decoded = {name: decode_frame(frame) for name, frame in frame_set.frames.items()}
    views = {
        name: f.pixels if f.channel_order == 'rgb' else f.pixels[..., ::-1]
        for name, f in decoded.items()
    }
    front = [views[f'CAM_{name}'] for name in ('FRONT_LEFT', 'FRONT', 'FRONT_RIGHT')]
    back = [views[f'CAM_{name}'] for name in ('BACK_RIGHT', 'BACK', 'BACK_LEFT')]
    picture = Image.fromarray(np.vstack([np.hstack(front), np.hstack(back)]))
    squashed = np.asarray(picture.resize((112, 112), Image.Resampling.BICUBIC)) / 255
    normal = (squashed - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(normal).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ('ratios', 'num_kept'),
    [({}, [2, 4, 2, 2, 4, 2]), ({'CAM_FRONT': 0.5, 'CAM_BACK': 0.1}, [2, 2, 2, 2, 1, 2])],
    ids=['all', 'pruned'],
)
def test_the_answer_is_that_of_the_published_weights_on_the_stitched_picture(
    folder, weights, ratios, num_kept
):
    frame_set = make_frame_set()
    answer = answer_of(folder, frame_set, ratios, dtype='float64')
    assert answer.tokens_total == {name: len(REGIONS[name]) for name in NUSCENES_CAMERAS}
    kept = {name: indices.tolist() for name, indices in answer.keep_indices.items()}
    assert [len(kept[name]) for name in REGIONS] == num_kept
    assert all(set(kept[name]) <= set(REGIONS[name]) for name in REGIONS)

    family = load_family(open_checkpoint(folder), dtype=torch.float64, device=CPU)
    prompt = family.build_prompt(QUESTION, NUSCENES_CAMERAS)
    (segment,) = prompt.segments
    start, length = len(segment), len(segment) + 16 + len(prompt.suffix)
    dropped = set(range(16)) - {index for indices in kept.values() for index in indices}
    positions = torch.tensor([p for p in range(length) if p - start not in dropped])
    views = drivelmm_o1_views(stitched_pixel_values(frame_set), weights, CONFIG)
    table = weights['language_model.base_model.model.model.tok_embeddings.weight']
    full = torch.cat([table[list(segment)], views[0], table[list(prompt.suffix)]])
    logits = internlm2_logits(full[positions], weights, CONFIG['llm_config'], positions)[-1]
    expected = float(logits.log_softmax(-1).max())
    # The authors resize with Pillow, which rounds some bytes to the next level.
    assert answer.mean_log_probability == pytest.approx(expected, abs=1e-3)


def test_a_region_keeps_the_most_diverse_of_its_own_tokens(folder, weights):
    answer = answer_of(folder, make_frame_set(), dict.fromkeys(NUSCENES_CAMERAS, 0.5))
    views = drivelmm_o1_views(stitched_pixel_values(make_frame_set()), weights, CONFIG)
    for name, region in REGIONS.items():
        (expected,) = select_tokens(views[:, region], [len(region) // 2])
        chosen = [region[index] for index in expected.tolist()]
        assert answer.keep_indices[name].tolist() == chosen


@pytest.mark.slow
def test_an_engine_sees_the_stitched_picture(folder, tmp_path):
    command = ['build-engine', '--model', str(folder), '--backend', 'onnxruntime']
    options = ['--camera-size', '180x480', '--engine-dir', str(tmp_path)]
    assert main([*command, *options]) == 0
    assert main(['inspect-engine', '--model', str(folder), '--engine-dir', str(tmp_path)]) == 0
    ratios = dict.fromkeys(NUSCENES_CAMERAS, 0.5)
    in_torch = answer_of(folder, make_frame_set(), ratios)
    encoder = EncoderConfig(backend='onnxruntime', engine_dir=str(tmp_path))
    by_engine = answer_of(folder, make_frame_set(), ratios, encoder=encoder)
    assert by_engine.encoder.startswith('onnxruntime')
    assert by_engine.keep_indices.keys() == in_torch.keep_indices.keys()
    for name, indices in in_torch.keep_indices.items():
        assert by_engine.keep_indices[name].tolist() == indices.tolist()


def test_the_model_is_told_which_view_is_black(folder):
    family = load_family(
        open_checkpoint(folder), view_size=(112, 112), dtype=torch.float32, device=CPU
    )
    whole = family.build_prompt(QUESTION, NUSCENES_CAMERAS)
    partial = family.build_prompt(QUESTION, NUSCENES_CAMERAS[1:])
    sentence = f'{describe_missing_views(NUSCENES_CAMERAS[:1])} {QUESTION}'
    assert family.build_prompt(sentence, NUSCENES_CAMERAS) == partial != whole


def test_a_missing_view_keeps_nothing(folder):
    present = tuple(name for name in NUSCENES_CAMERAS if name != 'CAM_BACK')
    answer = answer_of(folder, make_frame_set(present), {})
    assert {name: indices.tolist() for name, indices in answer.keep_indices.items()} == {
        name: REGIONS[name] for name in present
    }


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ([['CAM_FRONT', 'CAM_BACK']], 'cameras: got CAM_FRONT_LEFT, allowed with copied: CAM_FR'),
        ([['CAM_FRONT'], ['CAM_BACK', 'CAM_BACK_LEFT']], 'rows of up to 4 different camera names'),
        ([['CAM_FRONT', 'CAM_FRONT']], 'rows of up to 4 different camera names'),
        ([], 'rows of up to 4 different camera names'),
        ('CAM_FRONT', 'rows of up to 4 different camera names'),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(folder, tmp_path, rows, message):
    copied = shutil.copytree(folder, tmp_path / 'copied')
    config = json.loads((copied / 'config.json').read_text())
    write_json(copied / 'config.json', config | {'p2d_mosaic': rows})
    with pytest.raises(ConfigError, match=message):
        DrivingPipeline.from_config(DriveConfig(model=str(copied), device='cpu'))


def test_kept_tokens_are_lit_where_they_are_in_the_stitched_picture(folder):
    frame_set = make_frame_set()
    answer = answer_of(folder, frame_set, {})
    kept = dict.fromkeys(NUSCENES_CAMERAS, np.array([], np.int64)) | {
        'CAM_FRONT': np.array([1, 6])
    }
    views = stitched_views(drivelmm_o1.MOSAIC, (4, 4))
    picture = draw_kept_tokens(frame_set, replace(answer, keep_indices=kept), views)
    dark = draw_kept_tokens(
        frame_set,
        replace(answer, keep_indices=kept | {'CAM_FRONT': np.array([], np.int64)}),
        views,
    )
    lit = (picture != dark).any(axis=2)
    front = lit[26 : 26 + 270, 480:960]
    # The view is the middle third of four columns of tokens: two of them meet in its middle.
    assert front[:135, :240].mean() > 0.9
    assert front[135:, 240:].mean() > 0.9
    assert not front[:135, 241:].any()
    assert not front[135:, :239].any()
    lit[: 26 + 270, 480:960] = False  # the front view and its caption, which counts the tokens
    assert not lit.any()
