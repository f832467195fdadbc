"""Builds and loads engines of the tiny checkpoint for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.config import EncoderConfig
from p2d_node.engine_build.build_plan import BuildPlan
from p2d_node.engine_build.export_plan import ExportPlan
from p2d_node.language_model.families.registry import hash_vision_part, load_vision_module
from p2d_node.preprocessing import ImageProcessing
from p2d_node.vision_encoder.base import EncoderInput
from p2d_node.vision_encoder.engine_store import EngineRequest
from p2d_node.vision_encoder.factory import make_vision_encoder
from p2d_node.vision_encoder.tensorrt_api import BuildOptions
import torch

CPU = torch.device('cpu')
AHEAD_OF_TIME = BuildOptions(compute_capabilities=('8.6', '8.9'))


def ignore_progress(phase: str, done: int, total: int) -> None:
    """A progress callback that does nothing."""


def plan_of(checkpoint: Path, backend: str, **changes) -> BuildPlan:
    """A build of the tiny checkpoint for the CPU, or ahead of time for two GPU generations."""
    ahead = backend == 'tensorrt_rtx'
    export = ExportPlan(
        checkpoint=open_checkpoint(checkpoint),
        processing=ImageProcessing.from_folder(checkpoint),
        input_spec=EncoderInput(),
        precision='fp16' if ahead else 'fp32',
        num_views=6,
    )
    options = AHEAD_OF_TIME if ahead else BuildOptions()
    return BuildPlan(export=replace(export, **changes), backend=backend, options=options)


def request_of(checkpoint: Path) -> EngineRequest:
    """What the node asks for when it runs the tiny checkpoint."""
    return EngineRequest(
        model_name=checkpoint.name,
        model_folder=str(checkpoint),
        vision_sha256=lambda: hash_vision_part(open_checkpoint(checkpoint)),
        processing=ImageProcessing.from_folder(checkpoint).to_json(),
        num_views=6,
    )


def load(engine_dir: Path, checkpoint: Path, backend: str, *, allow_unverified: bool = False):
    """Load an encoder as the pipeline does."""
    config = EncoderConfig(
        backend=backend, engine_dir=str(engine_dir), allow_unverified=allow_unverified
    )
    module = load_vision_module(open_checkpoint(checkpoint))
    request = request_of(checkpoint)
    return make_vision_encoder(config, request, module, dtype=torch.float32, device=CPU)


def engine_folder(engine_dir: Path, backend: str = 'onnxruntime') -> Path:
    """The one engine of a backend."""
    (folder,) = engine_dir.glob(f'*/{backend}-*')
    return folder
