"""The settings of a model come in; the sizes that its arithmetic depends on go out.

A named shape or a folder will do; the folder needs no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2d_node.benchmarks.model_shape import ModelShape, SHAPES
from p2d_node.checkpoints.custom_code import refuse_custom_code
from p2d_node.checkpoints.model_folder import model_folder
from p2d_node.checkpoints.settings_limits import check_limits, read_config
from p2d_node.checkpoints.weight_files import check_files
from p2d_node.errors import checkpoint_faults, ConfigError, quote
from p2d_node.views import Mosaic

COLOURS = 3


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Equal transformer layers.

    Attributes:
        count: Number of layers.
        width: Features per token.
        inner: Features inside the feed-forward part.
        heads: Attention heads.
        key_value_heads: Heads of keys and values.
        head_size: Features per head.
        mlp_matrices: Matrices of the feed-forward part: 2, or 3 with a gate.
    """

    count: int
    width: int
    inner: int
    heads: int
    key_value_heads: int
    head_size: int
    mlp_matrices: int

    @property
    def weights(self) -> int:
        """Weights in the matrices of all layers."""
        attention = 2 * self.width * self.head_size * (self.heads + self.key_value_heads)
        return self.count * (attention + self.mlp_matrices * self.width * self.inner)

    def attention_flops(self, queries: float, keys: float) -> float:
        """Return the operations of attention in all layers; every query sees every key."""
        return self.count * 4 * self.heads * self.head_size * queries * keys


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes of a vision-language model.

    Attributes:
        name: As in reports.
        text: The decoder layers.
        vocabulary: Rows of the output layer.
        vision: The layers of the vision encoder.
        patches: Patches per picture, and a class token where there is one.
        patch_values: Values of the pixels in a patch.
        tokens: Visual tokens per picture.
        extra_tokens: Further tokens per picture that are never dropped.
        projector: Weights of the projector that each visual token passes.
        stitched: Whether all views are one picture.
    """

    name: str
    text: Layers
    vocabulary: int
    vision: Layers
    patches: int
    patch_values: int
    tokens: int
    extra_tokens: int
    projector: int
    stitched: bool = False


def find_model_sizes(model: str, picture_px: tuple[int, int] | None = None) -> ModelSizes:
    """Return the sizes of a named shape or of the checkpoint in a folder.

    Args:
        model: A key of `SHAPES`, or as for `model_folder`.
        picture_px: Height and width of pictures, for models that accept any size; None: those that
            the checkpoint's image processor makes of a nuScenes frame.

    Raises:
        ConfigError: The folder or its config.json is missing or damaged, or no family has its
            `model_type`.
    """
    if model in SHAPES:
        return sizes_of_shape(SHAPES[model])
    with model_folder(model) as folder:
        return _sizes_of_folder(folder, picture_px)


def sizes_of_shape(shape: ModelShape) -> ModelSizes:
    """Return the sizes of a shape."""
    config = {'text_config': shape.text, 'vision_config': shape.vision}
    return _of_llava(shape.name, config, None)


def _sizes_of_folder(folder: Path, picture_px: tuple[int, int] | None) -> ModelSizes:
    check_files(folder)
    written = read_config(folder)
    model_type = str(written.get('model_type'))
    if model_type not in READERS:
        raise ConfigError(
            f'model: {folder}: got family {quote(model_type)}, allowed: {", ".join(READERS)}'
        )
    refuse_custom_code(folder)
    check_limits(folder)
    if model_type in VARIABLE_SIZE and picture_px is None:
        picture_px = _picture_size(folder)
    with checkpoint_faults(folder):
        from transformers import AutoConfig  # it fills in what config.json leaves out

        config = AutoConfig.for_model(**written)
        settings = {**config.to_dict(), 'text_config': config.get_text_config().to_dict()}
        stitched = Mosaic.from_config(written) is not None
        sizes = READERS[model_type](folder.resolve().name, settings, picture_px)
    numbers = (
        *vars(sizes.text).values(),
        *vars(sizes.vision).values(),
        *(sizes.vocabulary, sizes.tokens, sizes.patch_values, sizes.projector),
    )
    if min(numbers) < 1:
        raise ConfigError(
            f'model: {folder}: config.json has a size of {min(numbers)}, allowed: 1 or more; copy '
            'it again'
        )
    return ModelSizes(**{**vars(sizes), 'stitched': stitched})


def _picture_size(folder: Path) -> tuple[int, int]:
    from p2d_node.preprocessing import ImageProcessing

    processing = ImageProcessing.from_folder(folder)
    return processing.height_px, processing.width_px


Settings = Mapping[str, Any]


def _text_layers(text: Settings) -> Layers:
    heads = text['num_attention_heads']
    return Layers(
        count=text['num_hidden_layers'],
        width=text['hidden_size'],
        inner=text['intermediate_size'],
        heads=heads,
        key_value_heads=text.get('num_key_value_heads') or heads,
        head_size=text.get('head_dim') or text['hidden_size'] // heads,
        mlp_matrices=3,
    )


def _vision_layers(vision: Settings, *, mlp_matrices: int = 2) -> Layers:
    """Return the layers; Qwen-VL has other names for two settings."""
    heads = vision.get('num_attention_heads') or vision['num_heads']
    return Layers(
        count=vision.get('num_hidden_layers') or vision['depth'],
        width=vision['hidden_size'],
        inner=vision['intermediate_size'],
        heads=heads,
        key_value_heads=heads,
        head_size=vision['hidden_size'] // heads,
        mlp_matrices=mlp_matrices,
    )


def _of_llava(name: str, config: Settings, _: tuple[int, int] | None) -> ModelSizes:
    text, vision = config['text_config'], config['vision_config']
    patches = (vision['image_size'] // vision['patch_size']) ** 2
    return ModelSizes(
        name=name,
        text=_text_layers(text),
        vocabulary=text['vocab_size'],
        vision=_vision_layers(vision),
        patches=patches,
        patch_values=COLOURS * vision['patch_size'] ** 2,
        tokens=patches,
        extra_tokens=1,  # the newline
        projector=text['hidden_size'] * (vision['hidden_size'] + text['hidden_size']),
    )


def _of_internvl(name: str, config: Settings, _: tuple[int, int] | None) -> ModelSizes:
    text, vision = config['text_config'], config['vision_config']
    (height, width), (patch_height, patch_width) = vision['image_size'], vision['patch_size']
    patches = (height // patch_height) * (width // patch_width)
    block = round(1 / config['downsample_ratio']) ** 2
    return ModelSizes(
        name=name,
        text=_text_layers(text),
        vocabulary=text['vocab_size'],
        vision=_vision_layers(vision),
        patches=patches + 1,  # the class token
        patch_values=COLOURS * patch_height * patch_width,
        tokens=patches // block,
        extra_tokens=2,  # <img> and </img>
        projector=text['hidden_size'] * (block * vision['hidden_size'] + text['hidden_size']),
    )


def _of_qwen(name: str, config: Settings, picture_px: tuple[int, int] | None) -> ModelSizes:
    if picture_px is None:
        raise ValueError('a model that accepts any size needs the size of its pictures')
    text, vision = config['text_config'], config['vision_config']
    if config['model_type'] == 'qwen2_vl':  # other names
        vision = {
            **vision,
            'hidden_size': vision['embed_dim'],
            'intermediate_size': vision['embed_dim'] * vision['mlp_ratio'],
            'out_hidden_size': vision['hidden_size'],
        }
    height, width = picture_px
    block = vision['spatial_merge_size'] ** 2
    patches = (height // vision['patch_size']) * (width // vision['patch_size'])
    merged = block * vision['hidden_size']
    has_gate = config['model_type'] == 'qwen2_5_vl'
    mergers = 1 + len(vision.get('deepstack_visual_indexes') or ())
    return ModelSizes(
        name=name,
        text=_text_layers(text),
        vocabulary=text['vocab_size'],
        vision=_vision_layers(vision, mlp_matrices=3 if has_gate else 2),
        patches=patches,
        patch_values=COLOURS * vision['temporal_patch_size'] * vision['patch_size'] ** 2,
        tokens=patches // block,
        extra_tokens=2,  # <|vision_start|> and <|vision_end|>
        projector=mergers * merged * (merged + vision['out_hidden_size']),
    )


READERS: dict[str, Callable[[str, Settings, tuple[int, int] | None], ModelSizes]] = {
    'llava_onevision': _of_llava,
    'internvl': _of_internvl,
    'qwen2_vl': _of_qwen,
    'qwen2_5_vl': _of_qwen,
    'qwen3_vl': _of_qwen,
}
"""`model_type` of a config.json to the function that reads its sizes."""

VARIABLE_SIZE = ('qwen2_vl', 'qwen2_5_vl', 'qwen3_vl')
"""Families whose pictures may have any size."""
