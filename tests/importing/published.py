"""Tiny checkpoints with random weights in the formats of the models' authors."""

from __future__ import annotations

import json
from pathlib import Path

from p2d_node.language_model.importing.streaming import INDEX_FILE
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers, Tokenizer
import torch
from transformers import PreTrainedTokenizerFast

LLAMA_3_SPECIAL = (
    '<|begin_of_text|>',
    '<|end_of_text|>',
    '<|start_header_id|>',
    '<|end_header_id|>',
    '<|eot_id|>',
    '<|reserved_special_token_0|>',
)


def byte_tokenizer(special: tuple[str, ...], **tokens: str) -> PreTrainedTokenizerFast:
    """A tokenizer that knows every byte and `special`, and gives back exactly what it read."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def linear(weights: dict, name: str, rows: int, columns: int, *, bias: bool = False) -> None:
    """Add a random linear layer; the outputs stay about as large as the inputs."""
    weights[f'{name}.weight'] = torch.randn(rows, columns, dtype=torch.float64) / columns**0.5
    if bias:
        vector(weights, f'{name}.bias', rows)


def vector(weights: dict, name: str, size: int, mean: float = 0.0) -> None:
    """Add a random vector."""
    weights[name] = mean + 0.2 * torch.randn(size, dtype=torch.float64)


def norm(weights: dict, name: str, size: int, *, bias: bool = True) -> None:
    """Add a random normalisation."""
    vector(weights, f'{name}.weight', size, mean=1.0)
    if bias:
        vector(weights, f'{name}.bias', size)


def save_shards(folder: Path, weights: dict, num_shards: int = 3) -> None:
    """Write `weights` as shards with an index, cut anywhere, as real checkpoints are."""
    names = list(weights)
    weight_map = {}
    for number in range(num_shards):
        file = f'model-{number + 1:05d}-of-{num_shards:05d}.safetensors'
        mine = names[number * len(names) // num_shards : (number + 1) * len(names) // num_shards]
        save_file({n: weights[n] for n in mine}, folder / file, metadata={'format': 'pt'})
        weight_map |= dict.fromkeys(mine, file)
    index = {'metadata': {}, 'weight_map': weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index))


def write_json(path: Path, content: dict) -> None:
    """Write `content` into `path`."""
    path.write_text(json.dumps(content, indent=2))


def drivemm_config(vocab_size: int) -> dict:
    """DriveMM's config.json, scaled down: 8 query heads share 2 key-value heads."""
    return {
        'architectures': ['LlavaLlamaForCausalLM'],
        'model_type': 'llava_llama',
        'vocab_size': vocab_size,
        'hidden_size': 64,
        'intermediate_size': 96,
        'num_hidden_layers': 2,
        'num_attention_heads': 8,
        'num_key_value_heads': 2,
        'max_position_embeddings': 131072,
        'rms_norm_eps': 1e-5,
        'rope_theta': 500000.0,
        'rope_scaling': {
            'factor': 8.0,
            'high_freq_factor': 4.0,
            'low_freq_factor': 1.0,
            'original_max_position_embeddings': 8192,
            'rope_type': 'llama3',
        },
        'hidden_act': 'silu',
        'attention_bias': False,
        'tie_word_embeddings': False,
        'image_aspect_ratio': 'pad',
        'mm_projector_type': 'mlp2x_gelu',
        'mm_patch_merge_type': 'spatial_unpad',
        'mm_resampler_type': None,
        'mm_hidden_size': 32,
        'mm_vision_select_layer': -2,
        'mm_vision_tower': 'google/siglip-so400m-patch14-384',
        'bos_token_id': 256,
        'eos_token_id': 257,
        'torch_dtype': 'float16',
    }


def drivemm_weights(config: dict, *, patch: int = 96, vision_layers: int = 2) -> dict:
    """Random weights with LLaVA-NeXT's names; a patch of 96 px makes 4 x 4 tokens of a view."""
    weights: dict[str, torch.Tensor] = {}
    hidden, width = config['hidden_size'], config['mm_hidden_size']
    inner, vocabulary = config['intermediate_size'], config['vocab_size']
    heads, shared = config['num_attention_heads'], config['num_key_value_heads']
    linear(weights, 'model.embed_tokens', vocabulary, hidden)
    for number in range(config['num_hidden_layers']):
        layer = f'model.layers.{number}'
        linear(weights, f'{layer}.self_attn.q_proj', hidden, hidden)
        for name in ('k_proj', 'v_proj'):
            linear(weights, f'{layer}.self_attn.{name}', hidden // heads * shared, hidden)
        linear(weights, f'{layer}.self_attn.o_proj', hidden, hidden)
        linear(weights, f'{layer}.mlp.gate_proj', inner, hidden)
        linear(weights, f'{layer}.mlp.up_proj', inner, hidden)
        linear(weights, f'{layer}.mlp.down_proj', hidden, inner)
        norm(weights, f'{layer}.input_layernorm', hidden, bias=False)
        norm(weights, f'{layer}.post_attention_layernorm', hidden, bias=False)
    norm(weights, 'model.norm', hidden, bias=False)
    linear(weights, 'lm_head', vocabulary, hidden)
    vector(weights, 'model.image_newline', hidden)
    linear(weights, 'model.mm_projector.0', hidden, width, bias=True)
    linear(weights, 'model.mm_projector.2', hidden, hidden, bias=True)
    tower = 'model.vision_tower.vision_tower.vision_model'
    pixels = torch.randn(width, 3, patch, patch, dtype=torch.float64) / (3 * patch**2) ** 0.5
    weights[f'{tower}.embeddings.patch_embedding.weight'] = pixels
    vector(weights, f'{tower}.embeddings.patch_embedding.bias', width)
    linear(weights, f'{tower}.embeddings.position_embedding', (384 // patch) ** 2, width)
    for number in range(vision_layers):
        layer = f'{tower}.encoder.layers.{number}'
        for name in ('k_proj', 'v_proj', 'q_proj', 'out_proj'):
            linear(weights, f'{layer}.self_attn.{name}', width, width, bias=True)
        linear(weights, f'{layer}.mlp.fc1', 2 * width, width, bias=True)
        linear(weights, f'{layer}.mlp.fc2', width, 2 * width, bias=True)
        norm(weights, f'{layer}.layer_norm1', width)
        norm(weights, f'{layer}.layer_norm2', width)
    norm(weights, f'{tower}.post_layernorm', width)
    return weights


def write_drivemm(folder: Path, **changes) -> Path:
    """DriveMM, scaled down; `changes` go into its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {'bos_token': '<|begin_of_text|>', 'eos_token': '<|end_of_text|>'}
    tokenizer = byte_tokenizer(LLAMA_3_SPECIAL, **tokens)
    tokenizer.save_pretrained(folder)
    config = drivemm_config(len(tokenizer)) | changes
    write_json(folder / 'config.json', config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_shards(folder, drivemm_weights(config))
    return folder
