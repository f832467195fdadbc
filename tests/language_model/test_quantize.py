"""8- and 4-bit weights of the decoder layers."""

import importlib.util
import sys

from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.config import DriveConfig
from p2d_node.errors import BackendUnavailableError, ConfigError
from p2d_node.language_model import model_loading
from p2d_node.language_model.families.registry import load_family
from p2d_node.language_model.quantize import check_int4_widths, check_quantization
from p2d_node.pipeline import DrivingPipeline
from p2d_node.preprocessing import ImageProcessing
import pytest
from sweeps import make_frame_set
from tiny_checkpoints import WRITERS
import torch
from torch import nn

CPU = torch.device('cpu')
CAMERAS = ('CAM_FRONT', 'CAM_BACK')
QUESTION = 'What should the ego vehicle do next?'

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec('torchao') is None, reason='torchao is not installed'
)


@pytest.fixture(params=WRITERS)
def folder(request, tmp_path):
    return WRITERS[request.param](tmp_path)


@pytest.fixture
def unpacked(monkeypatch):
    """Leaves linear layers readable, which are fused and packed on a CPU."""
    monkeypatch.setattr(model_loading, 'fuse_decoder_layers', lambda layers: None)
    monkeypatch.setattr(model_loading, 'pack_linear_layers', lambda model: None)


def load(folder, weights, dtype=torch.float32):
    processing = ImageProcessing.from_folder(folder)
    return load_family(
        open_checkpoint(folder),
        view_size=(processing.height_px, processing.width_px),
        dtype=dtype,
        device=CPU,
        weights=weights,
    )


def compute_logits(family):
    """Logits after a question about two views."""
    generator = torch.Generator().manual_seed(0)
    size = family._embed_tokens.embedding_dim
    deepstack = getattr(family.vision_module, 'visual', None)
    widths = 1 + len(getattr(deepstack, 'deepstack_merger_list', ()))
    tokens = torch.randn(2, family.grid[0] * family.grid[1], size * widths, generator=generator)
    prompt = family.build_prompt(QUESTION, CAMERAS)
    inputs = family.embed_prefix(prompt, tokens)
    prefix = family.decoder.resume_prefill(family.decoder.begin_prefill(inputs))
    text = family.embed_text(prompt.suffix, inputs.end_position)
    return family.decoder.extend(prefix, [text])[1][:, 0]


def num_bytes(module):
    """Size of the weights of a module in bytes, including the parts of quantised weights."""
    total = 0
    for weight in module.parameters():
        if hasattr(weight, 'tensor_data_names'):
            names = [*weight.tensor_data_names, *weight.optional_tensor_data_names]
            parts = [getattr(weight, name) for name in names]
            total += sum(part.nbytes for part in parts if part is not None)
        else:
            total += weight.nbytes
    return total


def linear_layers(family):
    layers = family.decoder._model.layers
    return [module for module in layers.modules() if isinstance(module, nn.Linear)]


@needs_torchao
def test_int8_weights_are_rounded_to_255_steps_per_row_and_take_a_byte_each(folder, unpacked):
    plain, small = load(folder, 'as_is'), load(folder, 'int8')
    for exact, quantised in zip(linear_layers(plain), linear_layers(small), strict=True):
        step = exact.weight.abs().amax(dim=1, keepdim=True) / 127
        error = (quantised.weight.dequantize() - exact.weight).abs()
        assert (error <= 0.51 * step).all()
    num_weights = sum(module.weight.numel() for module in linear_layers(plain))
    num_rows = sum(module.out_features for module in linear_layers(plain))
    layers = (plain.decoder._model.layers, small.decoder._model.layers)
    saved = num_bytes(layers[0]) - num_bytes(layers[1])
    assert saved == 3 * num_weights - 5 * num_rows  # every row has a scale and an offset


@needs_torchao
def test_int8_logits_are_close_to_the_original_ones(folder):
    expected, logits = (compute_logits(load(folder, weights)) for weights in ('as_is', 'int8'))
    assert not torch.equal(logits, expected)
    assert (logits - expected).norm() < 0.15 * expected.norm()  # large random weights


@needs_torchao
def test_only_the_decoder_layers_are_quantised(folder, unpacked):
    plain, small = load(folder, 'as_is'), load(folder, 'int8')
    changed = {
        name.rpartition('.')[0]
        for (name, a), (_, b) in zip(
            plain._model.named_parameters(), small._model.named_parameters(), strict=True
        )
        if type(a) is not type(b) or not torch.equal(a, b)
    }
    linear = {n for n, m in plain._model.named_modules() if isinstance(m, nn.Linear)}
    assert changed == {name for name in linear if 'language_model.layers.' in name}


@needs_torchao
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_int8_answers_a_sweep_and_is_part_of_the_model_name(dtype, tiny_checkpoint):
    answers = []
    for weights in ('as_is', 'int8'):
        config = DriveConfig(
            model=str(tiny_checkpoint),
            device='cpu',
            dtype=dtype,
            weights=weights,
            max_new_tokens=8,
        )
        pipeline = DrivingPipeline.from_config(config)
        answers += pipeline.answer(make_frame_set(), [QUESTION])
        pipeline.close()
    plain, small = answers
    assert small.model == f'{plain.model} int8'
    assert small.mean_log_probability == pytest.approx(plain.mean_log_probability, rel=0.2)


@pytest.mark.parametrize(
    ('weights', 'dtype', 'reason'),
    [
        ('int8', torch.float64, 'got int8 with dtype float64, allowed with it: float32, bfloat16'),
        ('int4', torch.float16, 'got int4 with dtype float16, allowed with it: bfloat16'),
    ],
)
def test_unsupported_number_formats_are_refused(weights, dtype, reason):
    with pytest.raises(ConfigError, match=reason):
        check_quantization(weights, dtype, CPU)


def test_int4_is_refused_without_a_kernel(tiny_checkpoint):
    with pytest.raises(BackendUnavailableError, match=r'got int4 on device cpu, needed: a GPU.*8'):
        load(tiny_checkpoint, 'int4', torch.bfloat16)


def test_int4_is_refused_for_widths_that_it_would_leave_out():
    layers = nn.ModuleList([nn.Linear(256, 100), nn.Linear(100, 256)])
    with pytest.raises(ConfigError, match=r'int4 for layer 1 of width 100, allowed: multiples of'):
        check_int4_widths(layers)
    check_int4_widths(nn.ModuleList([nn.Linear(896, 4864), nn.Linear(4864, 896)]))


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    tiny_checkpoint, monkeypatch
):
    monkeypatch.setitem(sys.modules, 'torchao', None)
    with pytest.raises(BackendUnavailableError, match='pip install --no-deps torchao') as caught:
        load(tiny_checkpoint, 'int8')
    assert len(str(caught.value).splitlines()) == 1
    load(tiny_checkpoint, 'as_is')


def test_unknown_quantisation_is_refused():
    with pytest.raises(ConfigError, match="weights: got 'int3', allowed: as_is, int8, int4"):
        DriveConfig(weights='int3')
