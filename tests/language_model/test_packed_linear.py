import copy

from memory import peak_growth_bytes
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.model_folder import shipped_model_folder
from p2d_node.language_model.families.registry import load_family
from p2d_node.language_model.packed_linear import can_pack, pack_linear_layers, PackedLinear
import pytest
import torch
from torch import nn

CPU = torch.device('cpu')


class Tied(nn.Module):
    """Two layers of its own, and an output layer that shares the embeddings' weights."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(32, 16, dtype=dtype)
        self.layers = nn.Sequential(
            nn.Linear(16, 48, dtype=dtype), nn.Linear(48, 16, bias=False, dtype=dtype)
        )
        self.head = nn.Linear(16, 32, bias=False, dtype=dtype)
        self.head.weight = self.embeddings.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embeddings(ids)))


def packed_names(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, PackedLinear)]


@pytest.mark.parametrize(('dtype', 'atol'), [(torch.float32, 1e-5), (torch.bfloat16, 0.0)])
@pytest.mark.parametrize('shape', [(1, 1), (3, 7), (2, 0), (1, 900)])
def test_packed_layers_compute_what_plain_ones_do(dtype, atol, shape):
    torch.manual_seed(0)
    plain = Tied(dtype).eval()
    packed = copy.deepcopy(plain)
    pack_linear_layers(packed)
    assert packed_names(packed) == ['layers.0', 'layers.1']
    ids = torch.randint(32, shape)
    with torch.inference_mode():
        torch.testing.assert_close(packed(ids), plain(ids), rtol=0, atol=atol)


def test_tied_weights_are_left_as_they_are():
    model = Tied(torch.float32)
    pack_linear_layers(model)
    assert model.head.weight is model.embeddings.weight


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_other_number_formats_are_left_as_they_are(dtype):
    model = Tied(dtype)
    pack_linear_layers(model)
    assert packed_names(model) == []


def test_weights_of_another_device_are_left_as_they_are():
    assert not can_pack(torch.bfloat16, torch.device('cuda'))
    model = nn.Sequential(nn.Linear(4, 4, device='meta'))
    pack_linear_layers(model)
    assert packed_names(model) == []


def test_subclasses_of_linear_layers_are_left_as_they_are():
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    pack_linear_layers(attention)
    states = torch.randn(1, 3, 16)
    assert attention(states, states, states)[0].shape == (1, 3, 16)


def test_packing_needs_memory_for_one_layer_more():
    num_layers, layer_bytes = 24, 4 * 1024 * 1024
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(num_layers)))
    grown = peak_growth_bytes(lambda: pack_linear_layers(model))
    assert grown < num_layers * layer_bytes / 2
    assert len(packed_names(model)) == num_layers


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_loaded_model_on_a_cpu_is_packed(dtype):
    checkpoint = open_checkpoint(shipped_model_folder())
    family = load_family(checkpoint, dtype=dtype, device=CPU)
    parts = (family.vision_module, family.decoder._model.layers)
    for part in parts:
        assert packed_names(part)
        assert not [m for m in part.modules() if type(m) is nn.Linear]
