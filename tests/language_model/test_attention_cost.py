"""What attention may cost beside the weights."""

from p2d_node.config import DriveConfig
from p2d_node.errors import ConfigError
from p2d_node.language_model.families import attention_cost
from p2d_node.language_model.families.attention_cost import check_text, check_vision, Layers
from p2d_node.pipeline import DrivingPipeline
import pytest
from tiny_checkpoints import write_llava, write_qwen2_vl
from transformers import LlamaConfig, Qwen2Config, Qwen3VLMoeTextConfig, SiglipVisionConfig

LLAMA_8B = Layers(32, 4096, 32, 128, 8, 14336)
QWEN2_HALF_B = Layers(24, 896, 14, 64, 2, 4864)
QWEN3_HALF_B = Layers(28, 1024, 16, 128, 8, 3072)
QWEN3_VL_2B = Layers(28, 2048, 16, 128, 8, 6144)
QWEN2_5_VISION = Layers(32, 1280, 16, 80, 16, 3420)
SIGLIP = Layers(27, 1152, 16, 72, 16, 4304)


@pytest.mark.parametrize(
    ('layers', 'num_tokens'),
    [
        (LLAMA_8B, 73_728),
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
    'A checkpoint of 5 to 70 MB with many narrow layers or small heads: minutes of attention',
    'refused: up to 16 times the operations of the weights, and 4 times their memory and 1 GiB',
)
@pytest.mark.parametrize(
    ('layers', 'num_tokens', 'reason'),
    [
        (Layers(64, 64, 16, 64, 16, 64), 24_576, r'takes 1.8e.14 operations, allowed: 1.4e.13'),
        (Layers(512, 64, 1, 64, 1, 256), 16_384, r'takes .* operations, allowed'),
        (Layers(2, 64, 16, 4, 16, 256), 16_128, r'takes .* operations, allowed'),
        (Layers(64, 64, 1, 64, 16, 64), 3_000, 'keeps 1500 MiB, allowed: 1[0-9]{3}'),
    ],
)
def test_attention_that_the_weights_do_not_show_is_refused(layers, num_tokens, reason):
    with pytest.raises(ConfigError, match=f'over {num_tokens} tokens {reason}'):
        layers.check('language model', num_tokens)


@pytest.mark.parametrize('write', [write_llava, write_qwen2_vl])
@pytest.mark.parametrize('part', ['language model', 'vision tower'])
def test_both_parts_of_a_checkpoint_are_checked_at_start(tmp_path, monkeypatch, write, part):
    folder = write(tmp_path / 'tiny')
    monkeypatch.setattr(attention_cost, 'FREE_OPERATIONS', 0)
    monkeypatch.setattr(attention_cost, 'MAX_RATIO', 0)
    if part == 'language model':
        monkeypatch.setattr(Layers, 'check', checks_only(part, Layers.check))
    with pytest.raises(ConfigError, match=f'attention of its {part} over'):
        DrivingPipeline.from_config(DriveConfig(model=str(folder), device='cpu'))


def checks_only(wanted, check):
    """Leave out the other part, which is checked first."""

    def check_part(layers, part, *args):
        if part == wanted:
            check(layers, part, *args)

    return check_part


def test_experts_count_as_often_as_a_token_uses_them():
    config = Qwen3VLMoeTextConfig(
        num_hidden_layers=48,
        hidden_size=2048,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    )
    check_text(config, 24_576)
    config.num_experts_per_tok, config.moe_intermediate_size = 1, 1
    config.hidden_size = 64
    with pytest.raises(ConfigError, match='attention of its language model'):
        check_text(config, 24_576)


def test_heads_of_a_size_that_only_the_file_has_count():
    """Qwen2's attention reads `head_dim`, which its configuration does not declare."""
    text = {'hidden_size': 64, 'num_hidden_layers': 220, 'intermediate_size': 1024}
    check_text(Qwen2Config(**text, num_attention_heads=4, num_key_value_heads=4), 2_166)
    config = Qwen2Config(**text, num_attention_heads=4, num_key_value_heads=4, head_dim=256)
    with pytest.raises(ConfigError, match=r'attention of its language model .* MiB, allowed'):
        check_text(config, 2_166)


@pytest.mark.attack(
    'A config.json with settings of another family, which make its attention seem cheap',
    'only the settings that its own type has are read',
)
def test_settings_that_a_part_does_not_have_do_not_count():
    vision = {'hidden_size': 64, 'num_hidden_layers': 64, 'num_attention_heads': 64}
    vision['intermediate_size'] = 64
    small = {'depth': 1, 'num_heads': 1, 'embed_dim': 4096}
    with pytest.raises(ConfigError, match='attention of its vision tower over 4096 tokens'):
        check_vision(SiglipVisionConfig(**vision, **small), 4_096)
    text = {'hidden_size': 64, 'num_hidden_layers': 512, 'num_attention_heads': 16}
    large = {'num_experts_per_tok': 16, 'moe_intermediate_size': 1 << 20}
    with pytest.raises(ConfigError, match='attention of its language model'):
        check_text(LlamaConfig(**text, intermediate_size=64, **large), 24_576)
