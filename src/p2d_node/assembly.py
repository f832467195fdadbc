"""The configuration comes in; the loaded stages of a pipeline go out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from p2d_node.answers import ModelIdentity
from p2d_node.checkpoints.checkpoint import Checkpoint, open_checkpoint
from p2d_node.checkpoints.devices import choose_device, choose_dtype, default_num_threads
from p2d_node.checkpoints.model_folder import model_folder
from p2d_node.clips import ClipSettings
from p2d_node.config import DriveConfig
from p2d_node.errors import checkpoint_faults, ConfigError
from p2d_node.language_model.conversation import Conversation
from p2d_node.language_model.families.base import Family
from p2d_node.language_model.families.registry import hash_vision_part, load_family
from p2d_node.language_model.quantize import AS_IS
from p2d_node.preprocessing import ImageProcessing
from p2d_node.prompt_layout import PromptLayout
from p2d_node.token_selection import SweepSelector
from p2d_node.units import NS_PER_MS
from p2d_node.views import make_views, Views
from p2d_node.vision_encoder.base import FRAMES, VisionEncoder
from p2d_node.vision_encoder.engine_store import EngineRequest
from p2d_node.vision_encoder.factory import make_vision_encoder
from p2d_node.vision_encoder.torch_encoder import TorchVisionEncoder
from p2d_node.vision_frontend import VisionFrontend
import torch

MAX_CLIP_TOKENS = 12_288
"""Visual tokens of a camera that tokens are chosen from; 16 frames of DriveMM have 11,664."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The stages of a pipeline, in their order, and what they share.

    Attributes:
        frontend: Frames to pixels.
        encoder: Pixels to visual tokens.
        selector: Visual tokens to kept tokens.
        language_model: Kept tokens and questions to answers.
        views: How views become pictures.
        device: Where the models run.
        model: What answers say about the model.
        clip: How many frames of each camera the model sees.
        layout: The texts around the pictures, if the model has its own.
        encoders_refused: With backend auto: why the preferred backends do not run.
        picture_settings: Resize and normalisation of pictures, as JSON data.
    """

    frontend: VisionFrontend
    encoder: VisionEncoder
    selector: SweepSelector
    language_model: Conversation
    views: Views
    device: torch.device
    model: ModelIdentity
    clip: ClipSettings
    layout: PromptLayout | None
    encoders_refused: Mapping[str, str]
    picture_settings: Mapping[str, Any]


def assemble(config: DriveConfig) -> Stages:
    """Load everything that `config` names; sets torch's number of threads.

    Raises:
        ConfigError: A folder, a file or a value that cannot be used.
        BackendUnavailableError: A device or library that is missing.
        EngineMismatchError: An engine that must not be loaded.
    """
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    torch.set_num_threads(config.num_threads or default_num_threads())
    with model_folder(config.model) as folder:
        return _assemble(config, folder, dtype, device)


def _assemble(
    config: DriveConfig, folder: Path, dtype: torch.dtype, device: torch.device
) -> Stages:
    with checkpoint_faults(folder):
        checkpoint = open_checkpoint(folder)
        processing = ImageProcessing.from_folder(folder, max_pixels=config.view_max_pixels)
        view_size = (processing.height_px, processing.width_px)
        family = load_family(
            checkpoint,
            view_size=view_size,
            dtype=dtype,
            device=device,
            weights=config.weights,
            encoder_weights=config.encoder.weights,
        )
        views = _make_views(checkpoint, family, processing, device)
    views.check_cameras(tuple(config.cameras))
    if checkpoint.prompt_layout is not None:
        checkpoint.prompt_layout.check_cameras(tuple(config.cameras))
    clip = _make_clip(config, views, checkpoint)
    _check_prune_layer(config, family, checkpoint)
    request = _engine_request(config, checkpoint, views, processing)
    chosen = make_vision_encoder(
        config.encoder, request, family.vision_module, dtype=dtype, device=device
    )
    if not isinstance(chosen.encoder, TorchVisionEncoder):
        family.release_vision_module()
    input_spec = chosen.encoder.input_spec
    model = _identify(config, checkpoint, chosen.encoder)
    return Stages(
        frontend=VisionFrontend(
            views,
            processing,
            num_cameras=len(config.cameras),
            frame_size=(
                (input_spec.height, input_spec.width) if input_spec.kind == FRAMES else None
            ),
            max_pixels=config.max_image_pixels,
            device=device,
        ),
        encoder=chosen.encoder,
        selector=SweepSelector(views),
        language_model=Conversation(
            family,
            model_name=model.name,
            cameras=tuple(name for name in config.cameras for _ in range(clip.num_frames)),
            num_visual_tokens=clip.num_frames * sum(map(views.count_tokens, config.cameras)),
        ),
        views=views,
        device=device,
        model=model,
        clip=clip,
        layout=checkpoint.prompt_layout,
        encoders_refused=chosen.refused,
        picture_settings=processing.to_json(),
    )


def _make_views(
    checkpoint: Checkpoint, family: Family, processing: ImageProcessing, device: torch.device
) -> Views:
    padded = processing.fit == 'pad'
    return make_views(
        checkpoint.mosaic, family.grid, padded=padded, device=device, model=checkpoint.name
    )


def clip_settings(config: DriveConfig, layout: PromptLayout | None = None) -> ClipSettings:
    """Return what a clip consists of.

    Args:
        config: Where it says nothing, `layout` counts.
        layout: Of the model, if it has one.
    """
    usual = (layout.frames_per_camera, layout.frame_interval_ms) if layout else (1, 100)
    interval_ms = config.frame_interval_ms or usual[1]
    return ClipSettings(config.frames_per_camera or usual[0], round(interval_ms * NS_PER_MS))


def with_clip_of_model(config: DriveConfig) -> DriveConfig:
    """Return `config` with the frames per camera and the interval that the model will see.

    Raises:
        ConfigError: The model folder cannot be used.
    """
    with model_folder(config.model) as folder:
        clip = clip_settings(config, open_checkpoint(folder).prompt_layout)
    return replace(
        config,
        frames_per_camera=clip.num_frames,
        frame_interval_ms=clip.interval_ns / NS_PER_MS,
    )


def _make_clip(config: DriveConfig, views: Views, checkpoint: Checkpoint) -> ClipSettings:
    clip = clip_settings(config, checkpoint.prompt_layout)
    num_frames = clip.num_frames
    if num_frames > 1 and views.stitched:
        raise ConfigError(
            f'frames_per_camera: got {num_frames}, allowed with {checkpoint.name}: 1, as '
            'its views are stitched into one picture'
        )
    most = max(1, MAX_CLIP_TOKENS // max(map(views.count_tokens, config.cameras)))
    if num_frames > most:
        raise ConfigError(
            f'frames_per_camera: got {num_frames}, allowed with {checkpoint.name}: up to {most}, '
            'as the memory of the selection grows with the square of the tokens of a clip; lower '
            'it, or view_max_pixels if the model takes views of any size'
        )
    return clip


def _check_prune_layer(config: DriveConfig, family: Family, checkpoint: Checkpoint) -> None:
    if config.prune_layer >= family.decoder.num_layers:
        raise ConfigError(
            f'prune_layer: got {config.prune_layer}, allowed: 0 to '
            f'{family.decoder.num_layers - 1}, the layers of {checkpoint.name}'
        )


def _engine_request(
    config: DriveConfig, checkpoint: Checkpoint, views: Views, processing: ImageProcessing
) -> EngineRequest:
    return EngineRequest(
        model_name=checkpoint.folder.name,
        model_folder=config.model,
        vision_sha256=cache(lambda: hash_vision_part(checkpoint)),
        processing=processing.to_json(),
        num_views=views.count_pictures(len(config.cameras)),
    )


def _identify(
    config: DriveConfig, checkpoint: Checkpoint, encoder: VisionEncoder
) -> ModelIdentity:
    quantized = '' if config.weights == AS_IS else f' {config.weights}'
    return ModelIdentity(
        name=f'{checkpoint.name}{quantized}',
        encoder=encoder.identity,
        untrained=checkpoint.untrained,
    )
