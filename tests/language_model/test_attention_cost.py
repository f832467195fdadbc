"""What attention may cost beside the weights."""

from types import SimpleNamespace

from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError
from p2d_node.language_model.families import attention_cost
from p2d_node.language_model.families.attention_cost import Layers
from p2d_node.pipeline import DrivingPipeline
import pytest
from tiny_checkpoints import write_llava

LLAMA_8B = Layers(32, 4096, 4096, 1024, 14336)
QWEN2_HALF_B = Layers(24, 896, 896, 128, 4864)
QWEN3_HALF_B = Layers(28, 1024, 2048, 1024, 3072)
QWEN3_VL_2B = Layers(28, 2048, 2048, 1024, 6144)
QWEN2_5_VISION = Layers(32, 1280, 1280, 1280, 3420)
SIGLIP = Layers(27, 1152, 1152, 1152, 4304)


@pytest.mark.parametrize(
    ('layers', 'num_tokens'),
    [
        (LLAMA_8B, 24_576),
        (QWEN2_HALF_B, 73_728),
        (QWEN3_HALF_B, 24_576),
        (QWEN3_VL_2B, 24_576),
        (QWEN2_5_VISION, 7_296),
        (SIGLIP, 4_096),
    ],
)
def test_published_models_may_have_many_tokens(layers, num_tokens):
    layers.check('model', num_tokens)


@pytest.mark.attack(
    'A checkpoint of 70 MB with many narrow layers, whose attention takes minutes and gigabytes',
    'refused: up to 16 times the operations of the weights, and 4 times their memory and 1 GiB',
)
@pytest.mark.parametrize(
    ('layers', 'num_tokens', 'reason'),
    [
        (
            Layers(64, 64, 1024, 1024, 64),
            24_576,
            r'takes 1.6e.14 operations, allowed: 1.4e.13',
        ),
        (Layers(512, 64, 64, 64, 256), 16_384, r'takes .* operations, allowed'),
        (Layers(64, 64, 64, 1024, 64), 3_000, 'keeps 1500 MiB, allowed: 1[0-9]{3}'),
    ],
)
def test_attention_that_the_weights_do_not_show_is_refused(layers, num_tokens, reason):
    with pytest.raises(ConfigError, match=f'over {num_tokens} tokens {reason}'):
        layers.check('language model', num_tokens)


@pytest.mark.parametrize('part', ['language model', 'vision tower'])
def test_both_parts_of_a_checkpoint_are_checked_at_start(tmp_path, monkeypatch, part):
    folder = write_llava(tmp_path / 'tiny')
    monkeypatch.setattr(attention_cost, 'FREE_OPERATIONS', 0)
    monkeypatch.setattr(attention_cost, 'MAX_RATIO', 0)
    other = 'of_text' if part == 'vision tower' else 'of_vision'
    monkeypatch.setattr(Layers, other, lambda _config: Layers(0, 0, 0, 0, 0))
    with pytest.raises(ConfigError, match=f'attention of its {part} over'):
        DrivingPipeline.from_config(DriveConfig(model=str(folder), device='cpu'))


def test_experts_count_as_often_as_a_token_uses_them():
    config = SimpleNamespace(
        num_hidden_layers=48,
        hidden_size=2048,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    )
    assert Layers.of_text(config) == Layers(48, 2048, 4096, 512, 6144)
