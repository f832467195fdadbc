"""Refuses settings of a checkpoint that would make libraries hang or fill the memory.

The limits are far above what published models have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
import re
from typing import Any

from p2d_node.checkpoints.tokenizer_limits import (
    check_token_numbers,
    check_tokenizer,
    check_tokenizer_config,
    MAX_VOCABULARY,
    without_vocabulary,
)
from p2d_node.durable_files import MAX_JSON_BYTES, read_json_object
from p2d_node.errors import checkpoint_faults, ConfigError, quote

CONFIG_FILE = 'config.json'
TOKENIZER_FILE = 'tokenizer.json'
TOKENIZER_CONFIG_FILE = 'tokenizer_config.json'
OTHER_TEMPLATES = 'additional_chat_templates'

MAX_CONFIG_BYTES = 1 << 20

SETTINGS = {
    CONFIG_FILE: MAX_CONFIG_BYTES,
    'generation_config.json': 1 << 20,
    TOKENIZER_CONFIG_FILE: 4 << 20,
    'special_tokens_map.json': 1 << 20,
    'added_tokens.json': 1 << 20,
    'preprocessor_config.json': 1 << 20,
    'processor_config.json': 4 << 20,
    'video_preprocessor_config.json': 1 << 20,
    'chat_template.json': 2 << 20,
}
"""Files of settings that libraries read, and their largest size in bytes."""

MAX_TEMPLATE_BYTES = 1 << 20
MAX_ENTRIES = 20_000
"""Of a list or object in settings; a published tokenizer has 6,400 reserved tokens."""

MAX_CONFIG_ENTRIES, MAX_CONFIG_VALUES = 1024, 10_000
"""Of a list or object in config.json, and of all of them. transformers writes them out, with a
line of its own for each value; published models have some hundreds."""

MAX_DEPTH = 16
"""Of settings, whose lines begin with as many spaces as they are deep."""

LISTS_OF_LISTS = ('image_grid_pinpoints',)
"""Keys of config.json whose lists of lists may hold numbers. Those of other keys hold texts: one
for rotary positions would make as many of each token."""

MAX_TOKENIZER_VALUES, MAX_OTHER_VALUES = 1 << 21, 20_000
"""Of tokenizer.json, and of what is not its vocabulary, merges or added tokens. The library reads
more than it knows, at 350 bytes and 4 microseconds per value; published ones have up to a million
values, and some hundreds of others."""

SECTIONS_KEY = 'mrope_section'

MAX_EXPERT_CALLS = 1024
"""Of a token, in all layers; published models have up to 94 layers with 8 experts per token."""

DEFAULT_EXPERTS = 8
"""Per token, in transformers."""

MAX_LAYERS, MAX_COUNT, MAX_NUMBER = 512, 1 << 16, 1 << 31
LAYER_KEY = re.compile(r'(?!.*_size).*(layer|depth|block|expert|stage)')
"""Keys of config.json whose value is a number of modules to build, or a place among them."""

WIDTHS = {
    **dict.fromkeys(('hidden_size', 'embed_dim', 'out_hidden_size'), 1 << 14),
    **dict.fromkeys(('num_attention_heads', 'num_key_value_heads', 'num_heads'), 256),
    'vocab_size': MAX_VOCABULARY,
    'head_dim': 1 << 10,
    'image_size': 1 << 11,
    'patch_size': 128,
    'num_experts_per_tok': 16,
    'partial_rotary_factor': 1,
    **dict.fromkeys(('temporal_patch_size', 'in_channels', 'in_chans', 'num_channels'), 4),
}
"""Keys of config.json to their largest value. Each token, patch or picture takes that much memory
in a layer, also of a model with small weights. Published models are up to 16,384 wide (Llama 3.1
405B), and take pictures of up to 1,344 pixels."""

WIDTH_RATIO = 16
"""Of a layer inside of a block to the width of the model, or the other way round; published ones
have up to 8. Else a token or patch would take much more memory than the weights."""

FEATURE_LAYERS = ('deepstack_visual_indexes', 'vision_feature_layer')
MAX_FEATURE_LAYERS = 8
"""Of the encoder, whose features a visual token has; published models have up to four."""


REFUSED = {
    'configuration_files': 'all settings are in config.json',
    'transformers_weights': 'weights are in model.safetensors or in the files of its index',
    'attribute_map': 'settings have the names that transformers gives them',
    'sub_configs': 'the parts are those of the model type',
    'quantization_config': 'copy the checkpoint without quantisation; the parameter weights '
    'quantises it',
}
"""Settings that name other files, a library that makes other modules of the weights, or other
names for settings, with which they would pass the checks by name."""

PART_TYPES = {
    'text_config': {
        'llama',
        'mistral',
        'qwen2',
        'qwen3',
        'qwen2_vl_text',
        'qwen2_5_vl_text',
        'qwen3_vl_text',
        'qwen3_vl_moe_text',
    },
    'vision_config': {
        'siglip_vision_model',
        'clip_vision_model',
        'internvl_vision',
        'qwen2_vl',
        'qwen2_vl_vision',
        'qwen2_5_vl',
        'qwen2_5_vl_vision',
        'qwen3_vl',
        'qwen3_vl_vision',
        'qwen3_vl_moe',
        'qwen3_vl_moe_vision',
    },
}
"""Part of config.json to the model types whose settings are checked here."""


def check_limits(folder: Path, *, parameter: str = 'model') -> None:
    """Check the settings of a checkpoint before a library reads them.

    Raises:
        ConfigError: A number, a text or a file of a size that no model has, or a setting that
            names other files.
    """
    _check_templates(folder, parameter)
    files = dict(read_settings(folder, parameter=parameter))
    for name, content in files.items():
        what = f'{parameter}: {folder / name}'
        if name == CONFIG_FILE:
            _check_config(what, content)
            continue
        _check_entries(what, content, MAX_ENTRIES)
        if name == TOKENIZER_CONFIG_FILE:
            check_tokenizer_config(what, content)
    path = folder / TOKENIZER_FILE
    if path.exists():
        content = read_json_object(
            path, parameter=parameter, max_bytes=MAX_JSON_BYTES, max_values=MAX_TOKENIZER_VALUES
        )
        with checkpoint_faults(folder, part=TOKENIZER_FILE, parameter=parameter):
            what = f'{parameter}: {path}'
            check_tokenizer(what, content)
            num_values = _check_entries(what, without_vocabulary(content), MAX_ENTRIES)
            if num_values > MAX_OTHER_VALUES:
                raise ConfigError(
                    f'{what}: got {num_values} values beside vocab, merges and added_tokens, '
                    f'allowed: up to {MAX_OTHER_VALUES}; copy the tokenizer again'
                )
        files[TOKENIZER_FILE] = content
    check_token_numbers(f'{parameter}: {folder}', files)


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json, the one file of settings that a model is built from.

    Raises:
        ConfigError: It is too large or not a JSON object, or a value is not allowed.
    """
    path = folder / CONFIG_FILE
    content = read_json_object(path, parameter='model', max_bytes=MAX_CONFIG_BYTES)
    _check_config(f'model: {path}', content)
    return content


def read_settings(folder: Path, *, parameter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the content of each file of settings.

    Raises:
        ConfigError: A file is too large or not a JSON object.
    """
    for name, max_bytes in SETTINGS.items():
        path = folder / name
        if path.exists():
            yield name, read_json_object(path, parameter=parameter, max_bytes=max_bytes)


def _check_entries(what: str, content: Any, max_entries: int) -> int:
    """Check the size and depth of lists and objects; returns the number of all values."""
    waiting, num_values = [(0, content)], 0
    while waiting:
        depth, item = waiting.pop()
        num_values += 1
        if not isinstance(item, (dict, list)):
            continue
        if len(item) > max_entries:
            raise ConfigError(
                f'{what}: got a list or object of {len(item)} entries, allowed: up to '
                f'{max_entries}; copy the checkpoint again'
            )
        if depth == MAX_DEPTH:
            raise ConfigError(
                f'{what}: got more than {MAX_DEPTH} lists and objects in one another, allowed: up '
                'to these; copy the checkpoint again'
            )
        inner = item.values() if isinstance(item, dict) else item
        waiting += ((depth + 1, part) for part in inner)
    return num_values


def _check_config(what: str, content: Mapping[str, Any]) -> None:
    num_values = _check_entries(what, content, MAX_CONFIG_ENTRIES)
    if num_values > MAX_CONFIG_VALUES:
        raise ConfigError(
            f'{what}: got {num_values} values, allowed: up to {MAX_CONFIG_VALUES}; copy the '
            'checkpoint again'
        )
    for part, allowed in PART_TYPES.items():
        settings = content.get(part)
        model_type = settings.get('model_type') if isinstance(settings, dict) else None
        if model_type is not None and model_type not in allowed:
            raise ConfigError(
                f'{what}: {part}.model_type: got {quote(model_type)}, allowed: '
                f'{", ".join(sorted(allowed))}; CONTRIBUTING.md says how to add a family'
            )
    for key, value in _values(content):
        if isinstance(value, dict):
            _check_inner_widths(what, value)
            _check_experts(what, value)
            _check_sections(what, value)
        instead = _allowed(key, value)
        if instead is not None:
            raise ConfigError(f'{what}: {key}: got {quote(value)}, allowed: {instead}')


def _allowed(key: str, value: Any) -> str | None:
    """Return what is allowed in place of a value; None if the value is."""
    if key in REFUSED and value is not None:
        return f'none; {REFUSED[key]}'
    if key == 'return_dict' and not value:  # the vision part would return a tuple
        return 'true; copy the checkpoint again'
    if key in FEATURE_LAYERS and isinstance(value, list) and len(value) > MAX_FEATURE_LAYERS:
        return f'up to {MAX_FEATURE_LAYERS} layers; copy the checkpoint again'
    if key not in LISTS_OF_LISTS and _holds_lists_of_numbers(value):
        return 'a list of single numbers; copy the checkpoint again'
    if key in WIDTHS and isinstance(value, str):  # Python multiplies texts, too
        return 'a number; copy the checkpoint again'
    return _allowed_number(key, value)


def _holds_lists_of_numbers(value: Any) -> bool:
    inner = [item for item in value if isinstance(item, list)] if isinstance(value, list) else []
    return not all(isinstance(item, str) for part in inner for item in part)


def _allowed_number(key: str, value: Any) -> str | None:
    limit = _limit_of(key)
    # Numbers without a limit of their own may be large: the base of rotary positions is a million.
    is_number = type(value) is int or (type(value) is float and limit < MAX_NUMBER)
    if is_number and not abs(value) <= limit:
        return f'up to {limit}; copy the checkpoint again'
    return None


def _check_inner_widths(what: str, part: Mapping[str, Any]) -> None:
    """Check the layers inside of the blocks of a part of a model."""
    width = part.get('embed_dim', part.get('hidden_size'))
    inner = {key: value for key, value in part.items() if key.endswith('intermediate_size')}
    if 'head_dim' in part:
        heads = part.get('num_attention_heads')
        inner['head_dim x num_attention_heads'] = _product(part['head_dim'], heads)
    inner['mlp_ratio x width'] = _product(part.get('mlp_ratio'), width)
    for key, value in inner.items():
        are_numbers = type(width) is int and isinstance(value, (int, float))
        if not are_numbers or value <= 0 or not 0 < width <= WIDTHS['hidden_size']:
            continue  # what is wrong with them by themselves is said elsewhere
        if not width <= WIDTH_RATIO * value <= WIDTH_RATIO**2 * width:
            raise ConfigError(
                f'{what}: {key}: got {quote(value)}, allowed: a {WIDTH_RATIO}th to {WIDTH_RATIO} '
                f'times the width of the model, {width}; copy the checkpoint again'
            )


def _check_experts(what: str, part: Mapping[str, Any]) -> None:
    if not any('expert' in key for key in part):
        return
    num_experts = part.get('num_experts_per_tok', DEFAULT_EXPERTS)
    num_calls = _product(num_experts, part.get('num_hidden_layers'))
    if num_calls is not None and num_calls > MAX_EXPERT_CALLS:
        raise ConfigError(
            f'{what}: num_experts_per_tok x num_hidden_layers: got {num_calls}, allowed: up to '
            f'{MAX_EXPERT_CALLS}; copy the checkpoint again'
        )


def _check_sections(what: str, part: Mapping[str, Any]) -> None:
    """Check the parts of the rotary phases, which nothing reads before the first sweep."""
    sections = part.get(SECTIONS_KEY)
    are_numbers = isinstance(sections, list) and all(type(item) is int for item in sections)
    if sections is not None and not are_numbers:
        raise ConfigError(
            f'{what}: {SECTIONS_KEY}: got {quote(sections)}, allowed: a list of whole numbers; '
            'copy the checkpoint again'
        )


def _product(one: Any, other: Any) -> float | None:
    is_number = isinstance(one, (int, float)) and isinstance(other, (int, float))
    return one * other if is_number else None


def _limit_of(key: str) -> int:
    if key in WIDTHS:
        return WIDTHS[key]
    if LAYER_KEY.match(key):
        return MAX_LAYERS
    return MAX_COUNT if key.startswith('num_') else MAX_NUMBER


def _values(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value with its key, at any depth; those of a list with the list's key."""
    waiting: list[tuple[str, Any]] = [('', content)]
    while waiting:
        key, item = waiting.pop()
        yield key, item
        if isinstance(item, dict):
            waiting += item.items()
        elif isinstance(item, list):
            waiting += ((key, value) for value in item)


def _check_templates(folder: Path, parameter: str) -> None:
    if (folder / OTHER_TEMPLATES).exists():
        raise ConfigError(
            f'{parameter}: {folder / OTHER_TEMPLATES}: got more chat templates, allowed: one, in '
            'chat_template.jinja; remove the folder'
        )
    for path in sorted(folder.glob('*.jinja')):
        num_bytes = path.stat().st_size
        if num_bytes > MAX_TEMPLATE_BYTES:
            raise ConfigError(
                f'{parameter}: {path} has {num_bytes} bytes, allowed: up to {MAX_TEMPLATE_BYTES}; '
                'copy it again'
            )
