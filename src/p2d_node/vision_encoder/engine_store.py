"""The engine folder: which engines it holds, and the commands that build and verify them.

An engine is a folder `<engine_dir>/<model>/<backend>-<precision>-<input>-<time>-<random>/` with a
manifest.json and artefacts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
import os
from pathlib import Path
import shlex
from typing import Any

from p2d_node.records import NUSCENES_CAMERAS
from p2d_node.vision_encoder.manifest import EngineManifest

DEFAULT_NUM_VIEWS = len(NUSCENES_CAMERAS)
"""Default number of cameras of an engine."""

EXPORT = 'onnx'
"""Name in place of a backend: an export, which all backends build from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """The model and the cameras that an engine must fit.

    Attributes:
        model_name: Name of the checkpoint.
        model_folder: Folder of the checkpoint, for the command that builds an engine.
        vision_sha256: Returns the fingerprint of the vision part. It reads about a gigabyte per
            second, so it is called only if there is an engine to compare with.
        processing: Settings of the image processor.
        num_views: Number of cameras.
    """

    model_name: str
    model_folder: str
    vision_sha256: Callable[[], str]
    processing: Mapping[str, Any]
    num_views: int


def default_engine_dir() -> Path:
    """Return `engines/` of the source tree, or the user's data folder if this is installed."""
    beside_sources = Path(__file__).resolve().parents[3] / 'engines'
    if (beside_sources / 'README.md').is_file():
        return beside_sources
    return Path(os.path.expanduser('~/.local/share/p2d_node/engines'))


def resolve_engine_dir(engine_dir: str) -> Path:
    """Return the folder of the parameter `encoder.engine_dir`; empty: the default folder."""
    return Path(os.path.expanduser(engine_dir)).resolve() if engine_dir else default_engine_dir()


def list_engines(engine_dir: Path, model_name: str, backend: str) -> list[Path]:
    """List the engine folders of a model for one backend, newest first."""
    found = [path for path in _folders(engine_dir / model_name) if backend_of(path) == backend]
    return sorted(found, key=_built_at, reverse=True)


def list_all_engines(engine_dir: Path) -> list[Path]:
    """List every engine folder of every model, newest first."""
    found = [path for model in _folders(engine_dir) for path in _folders(model)]
    return sorted(found, key=_built_at, reverse=True)


def _folders(parent: Path) -> Iterator[Path]:
    if parent.is_dir():
        # A name that begins with a dot is an unfinished build.
        yield from (p for p in parent.iterdir() if p.is_dir() and not p.name.startswith('.'))


def backend_of(folder: Path) -> str:
    """Return the backend in the name of an engine's folder."""
    return folder.name.split('-', 1)[0]


def _built_at(folder: Path) -> str:
    return '-'.join(folder.name.rsplit('-', 2)[1:])


def rebuild_command(
    engine_dir: Path,
    backend: str,
    model_folder: str,
    num_views: int,
    manifest: EngineManifest | None,
) -> str:
    """Return the command that builds an engine again.

    Args:
        engine_dir: The engine folder.
        backend: The backend, or `onnx` for an export.
        model_folder: The checkpoint.
        num_views: Number of cameras.
        manifest: The manifest of the engine to replace; None: default precision and input.
    """
    verb = ['export'] if backend == EXPORT else ['build-engine', '--backend', backend]
    words = ['p2d', *verb, '--model', model_folder]
    if num_views != DEFAULT_NUM_VIEWS:
        words += ['--views', str(num_views)]
    if manifest is None and backend == 'onnxruntime':
        # It mostly runs on a CPU, where the resize in the engine is slower than outside.
        words += ['--input', 'pixel_values']
    if manifest is not None:
        words += ['--precision', manifest.precision, '--input', manifest.input_kind]
        if manifest.input_kind == 'frames':
            words += ['--camera-size', f'{manifest.height}x{manifest.width}']
        if manifest.backend == 'tensorrt_rtx' and manifest.compute_capabilities:
            words += ['--compute-capability', ','.join(manifest.compute_capabilities)]
    return shlex.join([*words, *_engine_dir_option(engine_dir)])


def verify_command(folder: Path, model_folder: str) -> str:
    """Return the command that verifies the engine in `folder` with a checkpoint."""
    option = _engine_dir_option(folder.parents[1])
    return shlex.join(['p2d', 'verify-engine', str(folder), '--model', model_folder, *option])


def _engine_dir_option(engine_dir: Path) -> list[str]:
    if engine_dir.resolve() == default_engine_dir().resolve():
        return []
    return ['--engine-dir', str(engine_dir)]
