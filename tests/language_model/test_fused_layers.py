"""Fused decoder layers compute what transformers' own do."""

import copy

from memory import peak_growth_bytes
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.language_model.families.registry import find_family, load_family
from p2d_node.language_model.fused_layers import fuse_decoder_layers, fuse_linear, FusedLayer
from p2d_node.language_model.model_loading import load_weights
from p2d_node.preprocessing import ImageProcessing
import pytest
from tiny_checkpoints import WRITERS
import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

CPU = torch.device('cpu')
MASKS = {
    'a prefill': lambda length, columns: None,
    'one token': lambda length, columns: None,
    'one token, masked': lambda length, columns: torch.rand(2, 1, length, columns).double(),
    'several tokens, masked': lambda length, columns: torch.rand(2, 1, length, columns) > 0.2,
}
NUM_CACHED = {'a prefill': 0, 'one token': 5, 'one token, masked': 5, 'several tokens, masked': 5}
LENGTHS = {'a prefill': 7, 'one token': 1, 'one token, masked': 1, 'several tokens, masked': 3}


WITH_EXPERTS = 'qwen3_vl_moe'


@pytest.fixture(params=[name for name in WRITERS if name != WITH_EXPERTS])
def folder(request, tmp_path):
    return WRITERS[request.param](tmp_path)


def load(folder, **options):
    processing = ImageProcessing.from_folder(folder)
    view_size = (processing.height_px, processing.width_px)
    checkpoint = open_checkpoint(folder)
    return load_family(checkpoint, view_size=view_size, device=CPU, **options)


def text_model_of(folder):
    model_class = find_family(open_checkpoint(folder)).MODEL_CLASS
    model = load_weights(model_class, folder, dtype=torch.float64)
    return model.model.language_model


@pytest.mark.parametrize('case', MASKS)
def test_a_fused_layer_computes_what_the_layer_does(folder, case):
    torch.manual_seed(0)
    text_model = text_model_of(folder)
    plain = copy.deepcopy(text_model.layers[0])
    for name, parameter in plain.named_parameters():
        if 'norm' in name or name.endswith('bias'):  # an untrained layer has ones and zeros
            nn.init.normal_(parameter)
    fused = FusedLayer(copy.deepcopy(plain))
    width, num_cached, length = text_model.config.hidden_size, NUM_CACHED[case], LENGTHS[case]
    outputs = []
    hidden = torch.randn(2, num_cached + length, width, dtype=torch.float64)
    mask = MASKS[case](length, num_cached + length)
    positions = torch.arange(num_cached + length).expand(2, -1)
    for layer in (plain, fused):
        cache = DynamicCache()
        for part in (slice(num_cached), slice(num_cached, None)):
            states = hidden[:, part]
            if not states.shape[1]:
                continue
            is_last = states.shape[1] == length
            with torch.inference_mode():
                output = layer(
                    states,
                    attention_mask=mask if is_last else None,
                    position_embeddings=text_model.rotary_emb(states, positions[:, part]),
                    position_ids=None,
                    past_key_values=cache,
                    use_cache=True,
                )
        outputs.append((output, cache.layers[0].keys, cache.layers[0].values))
    for got, expected in zip(outputs[1], outputs[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_all_layers_of_a_loaded_model_are_fused_on_a_cpu(folder):
    layers = load(folder, dtype=torch.float32).decoder._model.layers
    assert {type(layer) for layer in layers} == {FusedLayer}


def test_layers_with_experts_are_left_as_they_are(tmp_path):
    folder = WRITERS[WITH_EXPERTS](tmp_path)
    layers = load(folder, dtype=torch.float32).decoder._model.layers
    assert FusedLayer not in {type(layer) for layer in layers}


def test_quantised_layers_are_left_as_they_are(folder):
    pytest.importorskip('torchao')
    layers = load(folder, dtype=torch.float32, weights='int8').decoder._model.layers
    assert FusedLayer not in {type(layer) for layer in layers}


@pytest.mark.parametrize('change', ['eager', 'other class', 'other device'])
def test_what_cannot_be_fused_is_left_as_it_is(change):
    class Other(LlamaDecoderLayer):
        pass

    config = LlamaConfig(hidden_size=16, num_attention_heads=2, intermediate_size=24)
    config._attn_implementation = 'eager' if change == 'eager' else 'sdpa'
    layer = (Other if change == 'other class' else LlamaDecoderLayer)(config, 0)
    layers = nn.ModuleList([layer.to('meta') if change == 'other device' else layer])
    fuse_decoder_layers(layers)
    assert layers[0] is layer


def test_fused_projections_keep_their_number_format_and_biases():
    for has_bias in (True, False):
        parts = [nn.Linear(4, rows, bias=has_bias, dtype=torch.bfloat16) for rows in (3, 2)]
        states = torch.randn(5, 4, dtype=torch.bfloat16)
        expected = torch.cat([part(states) for part in parts], dim=-1)
        torch.testing.assert_close(fuse_linear(parts)(states), expected, rtol=0.02, atol=0.02)


def test_fusing_needs_memory_for_one_layer_more():
    config = LlamaConfig(hidden_size=1024, intermediate_size=2048, num_attention_heads=8)
    config._attn_implementation = 'sdpa'
    layers = nn.ModuleList([LlamaDecoderLayer(config, index) for index in range(12)])
    num_bytes = sum(4 * parameter.numel() for parameter in layers.parameters())
    grown = peak_growth_bytes(lambda: fuse_decoder_layers(layers))
    assert grown < num_bytes / 2
    assert {type(layer) for layer in layers} == {FusedLayer}
