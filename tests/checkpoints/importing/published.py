"""Tiny checkpoints with random weights in the formats of the models' authors."""

from __future__ import annotations

import json
from pathlib import Path

from p2d_node.checkpoints.importing.streaming import INDEX_FILE
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers, Tokenizer
import torch
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

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


DATA = Path(__file__).parent / 'data'
RANK = 4
O1_TOKENS = {
    3: '<|im_end|>',
    4: '<|im_start|>',
    700: '<img>',
    701: '</img>',
    702: '<IMG_CONTEXT>',
}
"""Added tokens: two in the place of unused pieces, as in InternLM2, the others after the last."""


def internvl_config(**changes) -> dict:
    """DriveLMM-o1's config.json, scaled down: 8 query heads share 2 key-value heads."""
    return {
        'architectures': ['InternVLChatModel'],
        'model_type': 'internvl_chat',
        'downsample_ratio': 0.5,
        'force_image_size': 112,
        'llm_config': {
            'architectures': ['InternLM2ForCausalLM'],
            'model_type': 'internlm2',
            'vocab_size': 703,
            'hidden_size': 64,
            'intermediate_size': 96,
            'num_hidden_layers': 2,
            'num_attention_heads': 8,
            'num_key_value_heads': 2,
            'max_position_embeddings': 32768,
            'rms_norm_eps': 1e-5,
            'rope_theta': 1000000.0,
            'rope_scaling': {'factor': 2.0, 'type': 'dynamic'},
            'hidden_act': 'silu',
            'bias': False,
            'bos_token_id': 1,
            'eos_token_id': 2,
            'tie_word_embeddings': False,
        },
        'pad2square': False,
        'ps_version': 'v2',
        'select_layer': -1,
        'template': 'internvl2_5',
        'use_backbone_lora': RANK,
        'use_llm_lora': RANK,
        'vision_config': {
            'hidden_size': 32,
            'intermediate_size': 48,
            'num_hidden_layers': 2,
            'num_attention_heads': 4,
            'image_size': 112,
            'patch_size': 14,
            'qkv_bias': True,
            'qk_normalization': False,
            'norm_type': 'layer_norm',
            'layer_norm_eps': 1e-6,
            'hidden_act': 'gelu',
        },
        **changes,
    }


def lora_linear(weights: dict, name: str, rows: int, columns: int, *, bias: bool = False) -> None:
    """Add a random linear layer with LoRA beside it, as peft's wrapper names them."""
    linear(weights, f'{name}.base_layer', rows, columns, bias=bias)
    linear(weights, f'{name}.lora_A.default', RANK, columns)
    linear(weights, f'{name}.lora_B.default', rows, RANK)


def drivelmm_o1_weights(config: dict) -> dict:
    """Random weights with the names that InternVL's training with LoRA saves."""
    weights: dict[str, torch.Tensor] = {}
    vision, text = config['vision_config'], config['llm_config']
    _intern_vit(weights, vision)
    width, hidden = vision['hidden_size'], text['hidden_size']
    norm(weights, 'mlp1.0', 4 * width)
    linear(weights, 'mlp1.1', hidden, 4 * width, bias=True)
    linear(weights, 'mlp1.3', hidden, hidden, bias=True)
    model = 'language_model.base_model.model'
    inner, vocabulary = text['intermediate_size'], text['vocab_size']
    heads, shared = text['num_attention_heads'], text['num_key_value_heads']
    linear(weights, f'{model}.model.tok_embeddings', vocabulary, hidden)
    for number in range(text['num_hidden_layers']):
        layer = f'{model}.model.layers.{number}'
        fused = hidden // heads * (heads + 2 * shared)
        lora_linear(weights, f'{layer}.attention.wqkv', fused, hidden)
        lora_linear(weights, f'{layer}.attention.wo', hidden, hidden)
        lora_linear(weights, f'{layer}.feed_forward.w1', inner, hidden)
        lora_linear(weights, f'{layer}.feed_forward.w2', hidden, inner)
        lora_linear(weights, f'{layer}.feed_forward.w3', inner, hidden)
        norm(weights, f'{layer}.attention_norm', hidden, bias=False)
        norm(weights, f'{layer}.ffn_norm', hidden, bias=False)
    norm(weights, f'{model}.model.norm', hidden, bias=False)
    linear(weights, f'{model}.output', vocabulary, hidden)
    return weights


def _intern_vit(weights: dict, vision: dict) -> None:
    tower = 'vision_model.base_model.model'
    width, patch = vision['hidden_size'], vision['patch_size']
    inner = vision['intermediate_size']
    pixels = torch.randn(width, 3, patch, patch, dtype=torch.float64) / (3 * patch**2) ** 0.5
    weights[f'{tower}.embeddings.patch_embedding.weight'] = pixels
    vector(weights, f'{tower}.embeddings.patch_embedding.bias', width)
    num_patches = (vision['image_size'] // patch) ** 2
    for name, length in (('class_embedding', 1), ('position_embedding', num_patches + 1)):
        values = torch.randn(1, length, width, dtype=torch.float64)
        weights[f'{tower}.embeddings.{name}'] = values
    for number in range(vision['num_hidden_layers']):
        layer = f'{tower}.encoder.layers.{number}'
        lora_linear(weights, f'{layer}.attn.qkv', 3 * width, width, bias=True)
        lora_linear(weights, f'{layer}.attn.proj', width, width, bias=True)
        lora_linear(weights, f'{layer}.mlp.fc1', inner, width, bias=True)
        lora_linear(weights, f'{layer}.mlp.fc2', width, inner, bias=True)
        for name in ('norm1', 'norm2'):
            norm(weights, f'{layer}.{name}', width)
        for name in ('ls1', 'ls2'):
            vector(weights, f'{layer}.{name}', width, mean=1.0)


def write_internlm2_tokenizer(folder: Path) -> None:
    """Write InternLM2's tokenizer files, scaled down."""
    (folder / 'tokenizer.model').write_bytes((DATA / 'plain.model').read_bytes())
    added = {str(i): {'content': token, 'special': True} for i, token in O1_TOKENS.items()}
    write_json(folder / 'tokenizer_config.json', {'added_tokens_decoder': added})


def write_drivelmm_o1(folder: Path, weights: dict, **changes) -> Path:
    """DriveLMM-o1, scaled down, with `weights`; `changes` go into its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_internlm2_tokenizer(folder)
    write_json(folder / 'config.json', internvl_config(**changes))
    save_shards(folder, weights)
    return folder


def unwrapped(weights: dict) -> dict:
    """The weights of the model below the LoRA, with the names of a model without."""
    return {
        name.replace('base_model.model.', '').replace('.base_layer', ''): tensor
        for name, tensor in weights.items()
        if '.lora_' not in name
    }


def merged(weights: dict) -> dict:
    """The weights with the LoRA added, with the names of a model without."""
    added = dict(weights)
    for name, down in weights.items():
        if '.lora_A.' in name:
            base = name.replace('.lora_A.default', '.base_layer')
            added[base] = weights[base] + 2 * weights[name.replace('_A.', '_B.')] @ down
    return unwrapped(added)


def write_adapter(folder: Path, weights: dict, *, prefix: str, **changes) -> Path:
    """The LoRA of the language model alone, as peft saves an adapter."""
    folder.mkdir(parents=True)
    inside = 'language_model.base_model.model.'
    adapter = {
        name.replace(inside, prefix).replace('.default', ''): tensor
        for name, tensor in weights.items()
        if '.lora_' in name and name.startswith(inside)
    }
    save_file(adapter, folder / 'adapter_model.safetensors', metadata={'format': 'pt'})
    settings = {'peft_type': 'LORA', 'r': RANK, 'lora_alpha': 2 * RANK, 'bias': 'none'}
    write_json(folder / 'adapter_config.json', settings | changes)
    return folder


ALPAMAYO_MARKS = [
    'prompt_start',
    'prompt_end',
    'image_start',
    '_padding_0',
    'image_end',
    'traj_history_start',
    '_padding_1',
    'traj_history_end',
    'cot_start',
    'cot_end',
    '_padding_2',
    '_padding_3',
    'traj_future_start',
    '_padding_4',
    'traj_future_end',
    'traj_history',
    'traj_future',
    'image_pad',
    '_padding_5',
    '_padding_6',
    '_padding_7',
    '_padding_8',
    'route_start',
    'route_pad',
    'route_end',
    'question_start',
    'question_end',
    'answer_start',
    'answer_end',
]
TRAJECTORY_MARKS = [
    'traj_history',
    'traj_future',
    'traj_history_start',
    'traj_future_start',
    'traj_history_end',
    'traj_future_end',
]


def alpamayo_config(num_tokens: int, first: int, **changes) -> dict:
    """Alpamayo 1.5's config.json; `first` is the id of the first token of a trajectory."""
    return {
        'architectures': ['Alpamayo1_5'],
        'model_type': 'alpamayo1_5',
        'add_special_tokens': True,
        'vlm_backend': 'qwenvl3',
        'vlm_name_or_path': 'Qwen/Qwen3-VL-8B-Instruct',
        'vocab_size': num_tokens,
        'traj_token_start_idx': first,
        'traj_token_ids': {},
        'traj_vocab_size': 768,
        'tokens_per_history_traj': 16,
        'expert_cfg': {'hidden_size': 32, 'num_hidden_layers': 2},
        'diffusion_cfg': {'_target_': 'alpamayo1_5.diffusion.flow_matching.FlowMatching'},
        'dtype': 'float32',
        **changes,
    }


def alpamayo_weights(base: Path, num_tokens: int) -> dict:
    """The backbone with the shape of `base`, and the start of the part that plans."""
    content = json.loads((base / 'config.json').read_text())
    config = Qwen3VLConfig(**content)
    config.text_config.vocab_size = num_tokens
    model = Qwen3VLForConditionalGeneration(config)
    weights = {f'vlm.{name}': 0.3 * torch.randn_like(t) for name, t in model.state_dict().items()}
    if config.tie_word_embeddings:
        weights.pop('vlm.lm_head.weight')
    linear(weights, 'expert.layers.0.mlp.up_proj', 8, 4)
    linear(weights, 'expert.layers.0.mlp.down_proj', 4, 8)
    linear(weights, 'action_out_proj', 2, 4, bias=True)
    return weights


def write_alpamayo(folder: Path, base: Path, **changes) -> Path:
    """Alpamayo 1.5, scaled down, on the backbone in `base`; `changes` go into its config.json."""
    folder.mkdir(parents=True)
    first = len(AutoTokenizer.from_pretrained(base))
    marked = changes.get('add_special_tokens', True)
    # Qwen has <|image_pad|> already.
    num_marks = len(ALPAMAYO_MARKS) - 1 if marked else len(TRAJECTORY_MARKS)
    num_tokens = first + 768 + num_marks
    write_json(folder / 'config.json', alpamayo_config(num_tokens, first, **changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_shards(folder, alpamayo_weights(base, num_tokens))
    return folder
