"""A checkpoint folder in Hugging Face format, checked without loading its weights."""

from __future__ import annotations

from dataclasses import dataclass
import os
from pathlib import Path
import shlex

from p2d_node.checkpoints.custom_code import refuse_custom_code
from p2d_node.checkpoints.settings_limits import check_limits
from p2d_node.checkpoints.weight_files import check_files, find_weight_files
from p2d_node.durable_files import read_json_object
from p2d_node.errors import ConfigError, quote
from p2d_node.prompt_layout import PROMPT_KEY, PromptLayout
from p2d_node.views import Mosaic, MOSAIC_KEY

UNTRAINED_KEY = 'p2d_untrained'
"""Set in the config.json of models with random weights."""

IMPORTABLE = {
    'llava_llama': 'drivemm',
    'internvl_chat': 'drivelmm-o1',
    'alpamayo1_5': 'alpamayo1.5 --base QWEN3_VL',
}
"""`model_type` of published driving models to the import that converts them."""

LINEAR_ATTENTION = (
    'most of its layers have linear attention, whose state holds all tokens before and cannot '
    'leave out dropped ones'
)
SLIDING_ATTENTION = (
    'most of its layers attend to a sliding window, which counts cached tokens, and dropped ones '
    'make gaps'
)
TILES = 'it cuts a picture into tiles, with text between them for rows and columns'

OBSTACLES = {
    'qwen3_5': LINEAR_ATTENTION,
    'qwen3_5_moe': LINEAR_ATTENTION,
    'gemma3': SLIDING_ATTENTION,
    'gemma3n': SLIDING_ATTENTION,
    'smolvlm': TILES,
    'idefics3': TILES,
    'alpamayo_r1': 'its authors publish a prompt for trajectories only, and none for questions',
    'cosmos3_edge': 'its vision tower, a SigLIP 2 for packed pictures, has no class here yet',
}
"""`model_type` to what stands in the way of running it."""

ADAPTER_CONFIG = 'adapter_config.json'


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder with a config.json and weights.

    Attributes:
        folder: Path of the folder.
        model_type: The model's family.
        untrained: Whether the weights are random.
        mosaic: How the views are stitched into one picture; None if each view is one picture.
        prompt_layout: The texts around the pictures; None for the sentence of DriveLM.
    """

    folder: Path
    model_type: str
    untrained: bool
    mosaic: Mosaic | None = None
    prompt_layout: PromptLayout | None = None

    @property
    def name(self) -> str:
        """Name of the model in answers."""
        return f'{self.folder.name} (untrained)' if self.untrained else self.folder.name

    def count_pictures(self, num_cameras: int) -> int:
        """Return how many pictures the vision encoder gets of `num_cameras` cameras."""
        return num_cameras if self.mosaic is None else 1


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Check that `folder` holds a checkpoint, without loading weights or knowing its family.

    Raises:
        ConfigError: The folder, its config.json or its weights are missing or not in it, it must
            be imported first, its family cannot be run, it asks for Python code, or a setting has
            an absurd size.
    """
    path = Path(os.path.expanduser(folder))  # without an error for a user who does not exist
    if not os.path.isdir(path):  # without an error for a name that is too long
        raise ConfigError(
            f'model: got {quote(str(folder))}, which is not a folder; allowed: a checkpoint '
            'folder in Hugging Face format, or p2d-mini, which ships'
        )
    if path.name in ('', '..'):  # the name is that of the model, and of the folder of its engines
        path = path.resolve()
    check_files(path)
    config = read_json_object(
        path / 'config.json',
        parameter='model',
        next_step='copy the whole checkpoint folder',
    )
    model_type = str(config.get('model_type'))
    if model_type in IMPORTABLE:
        raise ConfigError(
            f"model: {path} is in its authors' format ({model_type}); convert it with: "
            f'p2d import-checkpoint --from {IMPORTABLE[model_type]} '
            f'{shlex.quote(str(path))} --out FOLDER'
        )
    if model_type in OBSTACLES:
        raise ConfigError(
            f'model: {path}: got family {model_type!r}, which cannot be run: '
            f'{OBSTACLES[model_type]}; docs/checkpoints.md lists the families'
        )
    find_weight_files(path)
    if (path / ADAPTER_CONFIG).exists():
        raise ConfigError(
            f'model: {path} holds an adapter ({ADAPTER_CONFIG}), which names other weights; merge '
            'the adapter into its model'
        )
    refuse_custom_code(path)
    check_limits(path)
    mosaic, layout = Mosaic.from_config(config), PromptLayout.from_config(config)
    if mosaic is not None and layout is not None:
        raise ConfigError(
            f'model: {path}: config.json: got {MOSAIC_KEY} and {PROMPT_KEY}, allowed: one of '
            'them: a stitched picture has no texts between its views; remove one'
        )
    return Checkpoint(
        path,
        model_type,
        untrained=bool(config.get(UNTRAINED_KEY, False)),
        mosaic=mosaic,
        prompt_layout=layout,
    )
