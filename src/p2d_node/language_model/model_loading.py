"""Loads the weights of a checkpoint as a transformers model, whole or the vision part only.

transformers allocates what config.json says, takes kernels from it, and warns of weights that are
missing. Here each of these is checked first, or an error.
"""

from __future__ import annotations

from collections.abc import Sequence
import logging
from pathlib import Path
from typing import Any

from p2d_node.checkpoints.custom_code import IMPLEMENTATION_KEY
from p2d_node.checkpoints.settings_limits import read_config, WIDTH_RATIO
from p2d_node.checkpoints.weight_files import read_tensors
from p2d_node.errors import ConfigError, quote
from p2d_node.language_model.fused_layers import fuse_decoder_layers
from p2d_node.language_model.int8_linear import quantize_linear_layers
from p2d_node.language_model.packed_linear import pack_linear_layers
from p2d_node.language_model.quantize import INT8, quantize_layers
from safetensors import SafetensorError
import torch
from torch import nn
from transformers import AutoConfig, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

FURTHER_OUTPUTS = ('output_attentions', 'output_hidden_states')
"""Keys of config.json that make a model return more than is used."""

MAX_BUFFER_ELEMENTS = 1 << 26
"""Values of a model that are not stored, such as its positions."""


def load_weights(model_class: Any, folder: Path, **options: Any) -> Any:
    """Load the safetensors checkpoint in `folder` on the CPU.

    Args:
        model_class: A transformers class with `from_pretrained`.
        folder: The checkpoint.
        options: Further arguments of `from_pretrained`.

    Returns:
        An instance of `model_class`, in evaluation mode.

    Raises:
        ConfigError: Weights are missing or do not match the config.
    """
    config = _read_config(folder)
    _check_generation_config(folder, config.get_text_config().vocab_size)
    _check_size(model_class, config, folder)
    options.setdefault('attn_implementation', 'sdpa')  # never what config.json names
    if options.get('dtype') == torch.float64:
        options['experts_implementation'] = 'eager'  # torch's kernel for experts has no float64
    model, wrong = _load_and_compare(model_class, folder, {'config': config, **options})
    _require_whole(folder, wrong)
    return model.eval()


def _read_config(folder: Path) -> Any:
    # Not by from_pretrained, which reads another file if config.json names one.
    return AutoConfig.for_model(**_without_run_time_keys(read_config(folder)))


def _without_run_time_keys(content: Any) -> Any:
    """Return settings, at any depth, without those that choose kernels or further outputs.

    Eager attention keeps the maps of all patches; what computes a model is chosen here.
    """
    if isinstance(content, list):
        return [_without_run_time_keys(item) for item in content]
    if not isinstance(content, dict):
        return content
    return {
        key: _without_run_time_keys(value)
        for key, value in content.items()
        if not IMPLEMENTATION_KEY.fullmatch(key) and key not in FURTHER_OUTPUTS
    }


def _check_size(model_class: Any, config: Any, folder: Path) -> None:
    """Check that config.json describes a model of about the size of the weights.

    transformers allocates what config.json says, and reads the weights afterwards.

    Raises:
        ConfigError: The model would have more than twice the values of the weights.
    """
    num_stored = sum(tensor.num_elements for tensor in read_tensors(folder).values())
    with torch.device('meta'):
        model = model_class(config)
    num_described = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    _check_widths(model, folder)
    # Weights that are used twice may be stored once; buffers are not stored.
    if num_described > 2 * num_stored + MAX_BUFFER_ELEMENTS:
        raise ConfigError(
            f'model: {folder}: config.json describes a model of {num_described} values, the '
            f'weights have {num_stored}; copy config.json and the weights from one checkpoint'
        )


def _check_widths(model: nn.Module, folder: Path) -> None:
    """Check the layers of a model on the meta device, whose sizes config.json may leave out."""
    output = getattr(model, 'lm_head', None)
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or layer is output:
            continue
        if layer.out_features > WIDTH_RATIO * layer.in_features:
            raise ConfigError(
                f'model: {folder}: {name}: makes {layer.out_features} features of '
                f'{layer.in_features}, allowed: up to {WIDTH_RATIO} times as many; copy '
                'config.json and the weights from one checkpoint'
            )


def _require_whole(folder: Path, wrong: Sequence[str]) -> None:
    if wrong:
        raise ConfigError(
            f'model: {folder}: {len(wrong)} weights are missing or have other shapes than '
            f'config.json says, the first is {wrong[0]}; copy the checkpoint again, with all its '
            'shards'
        )


def _check_generation_config(folder: Path, vocabulary_size: int) -> None:
    """Raise `ConfigError` for a broken file: transformers would ignore it and its end tokens."""
    path = folder / GENERATION_CONFIG_NAME
    try:
        settings = GenerationConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except OSError as err:
        if not path.exists():
            return
        raise ConfigError(
            f'model: {path}: not a JSON object; without it answers would not end; copy it again'
        ) from err
    ends = settings.eos_token_id
    for token in ends if isinstance(ends, list) else [ends]:
        if token is not None and not (type(token) is int and 0 <= token < vocabulary_size):
            raise ConfigError(
                f'model: {path}: eos_token_id: got {quote(token)}, allowed: 0 to '
                f'{vocabulary_size - 1}; copy it again'
            )


def quantize_and_move(
    model: Any,
    device: torch.device,
    *,
    weights: str,
    encoder_weights: str,
    vision_keys: Sequence[str],
) -> Any:
    """Quantise a model and move it to `device`.

    On a CPU decoder layers are fused, and the weights of linear layers are packed.

    Args:
        model: A loaded model.
        device: Device of the model.
        weights: Quantisation of the decoder layers.
        encoder_weights: Quantisation of the vision part.
        vision_keys: See `ChatModel.VISION_KEYS`.
    """
    layers = model.model.language_model.layers
    quantize_layers(layers, weights, device)
    model = model.to(device)
    for name in vision_keys if encoder_weights == INT8 else ():
        quantize_linear_layers(getattr(model.model, name))
    fuse_decoder_layers(layers)
    pack_linear_layers(model)
    return model


def load_vision_weights(
    model_class: Any, folder: Path, vision_keys: Sequence[str], *, dtype: torch.dtype
) -> Any:
    """Load a model without decoder layers, with eager attention.

    Args:
        model_class: A transformers class with `from_pretrained`.
        folder: The checkpoint.
        vision_keys: See `ChatModel.VISION_KEYS`.
        dtype: Number format of the weights.

    Raises:
        ConfigError: Weights of the vision part are missing or do not match the config.
    """
    config = _read_config(folder)
    # Without layers and vocabulary, the weights of the language model are not loaded.
    config.text_config.num_hidden_layers = 0
    config.text_config.layer_types = []
    config.text_config.vocab_size = 1
    config.text_config.pad_token_id = None
    _check_size(model_class, config, folder)
    options = {
        'config': config,
        'dtype': dtype,
        'attn_implementation': 'eager',
    }
    model, wrong = _load_and_compare(model_class, folder, options)
    _require_whole(folder, [key for key in wrong if any(part in key for part in vision_keys)])
    return model.eval()


def _load_and_compare(
    model_class: Any, folder: Path, options: dict[str, Any]
) -> tuple[Any, list[str]]:
    """Return the model, and the names of weights that are missing or have another shape."""
    logger = logging.getLogger('transformers.modeling_utils')
    logger.addFilter(_is_error)  # it warns by a wide table of what the caller says in one line
    try:
        model, report = model_class.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as err:
        reason = str(err).splitlines()[0]
        raise ConfigError(
            f'model: {folder}: the weights do not load: {reason}; copy the checkpoint again'
        ) from err
    finally:
        logger.removeFilter(_is_error)
    mismatched = [key for key, *_ in report['mismatched_keys']]
    return model, sorted([*mismatched, *report['missing_keys']])


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
