"""From a checkpoint folder to a loaded model family, or one clear error."""

from __future__ import annotations

from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

from p2d_node.errors import BackendUnavailableError, ConfigError
from p2d_node.language_model.checkpoint_files import checked_tokenizer
from p2d_node.language_model.families.base import Family
from p2d_node.language_model.families.internvl import InternVL
from p2d_node.language_model.families.llava_onevision import LlavaOnevision
from p2d_node.language_model.families.qwen_vl import Qwen3VL, Qwen25VL
from p2d_node.language_model.mosaic import Mosaic
from p2d_node.language_model.quantize import AS_IS, check_weights
import torch
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

FAMILIES: dict[str, Any] = {
    'llava_onevision': LlavaOnevision,
    'internvl': InternVL,
    'qwen2_5_vl': Qwen25VL,
    'qwen3_vl': Qwen3VL,
}
"""`model_type` of a checkpoint's config.json to the class that runs it."""

DEVICES = 'auto, cpu, cuda'

UNTRAINED_KEY = 'p2d_untrained'
"""Set in the config.json of models whose weights are random."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder that looks complete.

    Attributes:
        folder: Where it lies.
        model_type: Its family.
        untrained: True where the weights are random.
        mosaic: How views are stitched into one picture; None where each is one.
    """

    folder: Path
    model_type: str
    untrained: bool
    mosaic: Mosaic | None = None

    @property
    def name(self) -> str:
        """What answers call the model."""
        return f'{self.folder.name} (untrained)' if self.untrained else self.folder.name


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Check that `folder` holds a checkpoint of a known family, without loading weights.

    Raises:
        ConfigError: The folder, its config or its weights are missing, or the family is unknown.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ConfigError(
            f'model: got {str(folder)!r}, which is not a folder; allowed: a checkpoint folder in '
            'Hugging Face format, or p2d-mini, which ships'
        )
    config = _read_config(path)
    model_type = config.get('model_type')
    if model_type not in FAMILIES:
        raise ConfigError(
            f'model: {path}: got family {model_type!r}, allowed: {", ".join(FAMILIES)}'
        )
    if not any(path.glob('*.safetensors')):
        raise ConfigError(
            f'model: {path} has no weights: no *.safetensors file in it; copy the checkpoint '
            'again (pickled .bin weights are never loaded)'
        )
    return Checkpoint(
        path,
        model_type,
        untrained=bool(config.get(UNTRAINED_KEY, False)),
        mosaic=Mosaic.from_config(config),
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / 'config.json').read_text(encoding='utf-8'))
    except FileNotFoundError as err:
        raise ConfigError(
            f'model: {path} has no config.json; copy the whole checkpoint folder'
        ) from err
    except ValueError as err:
        raise ConfigError(f'model: {path}/config.json is not valid JSON: {err}') from err
    if not isinstance(config, dict):
        raise ConfigError(f'model: {path}/config.json is not a JSON object')
    return config


def load_family(
    checkpoint: Checkpoint,
    *,
    view_size: tuple[int, int] | None = None,
    dtype: torch.dtype,
    device: torch.device,
    weights: str = AS_IS,
) -> Family:
    """Load tokenizer and weights of `checkpoint`.

    Args:
        checkpoint: What to load.
        view_size: Height and width of the pictures that its preprocessing makes, pixels; families
            with one size only may go without.
        dtype: Number format of the weights.
        device: Where they go.
        weights: Whether the language model's are quantised: as_is, int8 or int4.

    Raises:
        ConfigError: A tokenizer without chat template, or weights that do not fit.
        BackendUnavailableError: Weights cannot be quantised here.
    """
    check_weights(weights, dtype, device)
    transformers_logging.disable_progress_bar()
    tokenizer = _load_tokenizer(checkpoint.folder)
    family: Family = FAMILIES[checkpoint.model_type].load(
        checkpoint.folder,
        tokenizer,
        view_size=view_size,
        dtype=dtype,
        device=device,
        weights=weights,
    )
    return family


def _load_tokenizer(folder: Path) -> Any:
    with checked_tokenizer(f'model: {folder}'):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise ConfigError(
            f'model: {folder}: the tokenizer has no chat template; copy chat_template.jinja from '
            'the checkpoint'
        )
    return tokenizer


def choose_device(name: str) -> torch.device:
    """Turn the parameter `device` into a torch device.

    Raises:
        ConfigError: Not a device name.
        BackendUnavailableError: A GPU is asked for and there is none.
    """
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise ConfigError(f'device: got {name!r}, allowed: {DEVICES}') from err
    if device.type not in ('cpu', 'cuda'):
        raise ConfigError(f'device: got {name!r}, allowed: {DEVICES}')
    if device.index:
        # Kernels, graphs and engines run on the thread's current GPU, which is the first.
        raise ConfigError(
            f'device: got {name!r}, allowed: {DEVICES}; choose another GPU by the environment: '
            f'CUDA_VISIBLE_DEVICES={device.index}'
        )
    if device.type == 'cuda' and not torch.cuda.device_count():
        raise BackendUnavailableError(
            f'device: got {name!r}, but torch sees no GPU; set device to cpu, or install the '
            'torch build of your GPU'
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn the parameter `dtype` into a torch dtype; auto is bfloat16 on a GPU."""
    if name == 'auto':
        return torch.bfloat16 if device.type == 'cuda' else torch.float32
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f'dtype: got {name!r}, allowed: auto or a torch dtype')
    return dtype
