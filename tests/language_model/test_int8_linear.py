"""Linear layers with 8-bit weights and activations."""

from memory import peak_growth_bytes
from p2d_node.checkpoints import devices
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.config import DriveConfig, EncoderConfig
from p2d_node.errors import BackendUnavailableError, ConfigError
from p2d_node.language_model import int8_linear
from p2d_node.language_model.families.registry import load_family
from p2d_node.language_model.int8_linear import (
    check_int8_encoder,
    Int8Linear,
    quantize_linear_layers,
)
from p2d_node.pipeline import DrivingPipeline
from p2d_node.preprocessing import ImageProcessing
import pytest
from sweeps import make_frame_set
from tiny_checkpoints import WRITERS
import torch
from torch import nn

CPU = torch.device('cpu')


@pytest.mark.parametrize('has_bias', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('adds_products', [True, False])
def test_the_product_is_within_the_error_of_eight_bits(
    has_bias, dtype, adds_products, monkeypatch
):
    if adds_products and not devices.adds_int8_products():
        pytest.skip('this CPU would overflow')
    monkeypatch.setattr(int8_linear, 'adds_int8_products', lambda: adds_products)
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, bias=has_bias, dtype=dtype)
    with torch.no_grad():
        linear.weight[3] *= 1000  # rows have scales of their own
        linear.weight[5] = 0
    features = torch.randn(2, 7, 64, dtype=dtype)
    product = Int8Linear(linear)(features)
    expected = linear(features).float()
    assert product.dtype == dtype
    assert product.shape == (2, 7, 32)
    # Half a step of 127 of the weights and one of 127 of the activations, over 64 values.
    largest = linear.weight.float().abs().amax(dim=1) * features.float().abs().max()
    assert ((product.float() - expected).abs() <= 64 * largest / 127 + 0.01).all()
    error = (product.float() - expected).norm(dim=(0, 1)) / expected.norm(dim=(0, 1))
    assert error[torch.arange(32) != 5].max() < 0.05


def test_quantising_needs_memory_for_one_layer_more():
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(24)))
    grown = peak_growth_bytes(lambda: quantize_linear_layers(model))
    assert grown < 24 * 4 * 1024 * 1024 / 2
    assert {type(module) for module in model} == {Int8Linear}


@pytest.mark.parametrize('family_name', WRITERS)
def test_only_the_encoder_of_a_loaded_model_is_quantised(family_name, tmp_path):
    folder = WRITERS[family_name](tmp_path)
    processing = ImageProcessing.from_folder(folder)
    family = load_family(
        open_checkpoint(folder),
        view_size=(processing.height_px, processing.width_px),
        dtype=torch.float32,
        device=CPU,
        encoder_weights='int8',
    )
    encoder = [type(module) for module in family.vision_module.modules()]
    assert Int8Linear in encoder
    assert nn.Linear not in encoder
    assert Int8Linear not in {type(m) for m in family.decoder._model.modules()}


def test_a_sweep_is_answered_and_the_answer_names_the_quantisation(tiny_checkpoint):
    encoder = EncoderConfig(backend='torch', weights='int8')
    config = DriveConfig(
        model=str(tiny_checkpoint), device='cpu', dtype='float32', encoder=encoder
    )
    pipeline = DrivingPipeline.from_config(config)
    (answer,) = pipeline.answer(make_frame_set(), ['What is ahead?'])
    assert answer.encoder == 'torch float32 int8 cpu'
    pipeline.close()


def test_it_is_refused_where_it_has_no_effect():
    with pytest.raises(
        ConfigError, match=r'encoder\.weights: got int8 with encoder\.backend auto'
    ):
        EncoderConfig(weights='int8')
    with pytest.raises(BackendUnavailableError, match='got int8 on device cuda:0, allowed: cpu'):
        check_int8_encoder(torch.device('cuda:0'))
    check_int8_encoder(CPU)
