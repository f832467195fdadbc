"""Finds and reads the retention ratios tuned for a model: config/retention/<model>.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
import os
from pathlib import Path

from p2d_node.data_folders import data_folder
from p2d_node.durable_files import read_file
from p2d_node.errors import ConfigError
from p2d_node.yaml_text import MAX_YAML_BYTES, parse_yaml

FOLDER = 'config/retention'


def preset_name(model: str) -> str:
    """Return the name of the file, without suffix, for the ratios of a model name or folder."""
    # Symbolic links are not resolved: the user chose their names.
    return os.path.basename(os.path.abspath(os.path.expanduser(model)))


def find_preset(model: str) -> Path | None:
    """Return the file with the ratios of a model name or folder; None if there is no file."""
    path = data_folder(FOLDER) / f'{preset_name(model)}.yaml'
    return path if os.path.isfile(path) else None


def writable_preset(model: str) -> Path | None:
    """Return the file whose ratios are the defaults of a model name or folder.

    Returns:
        A path that may not exist yet; None if its folder cannot be written.
    """
    folder = data_folder(FOLDER)
    if not os.access(folder, os.W_OK):
        return None
    return folder / f'{preset_name(model)}.yaml'


def tuned_ratios(model: str) -> dict[str, float]:
    """Return camera to retention ratio as tuned for a model name or folder; empty if not tuned.

    Raises:
        ConfigError: The file of the model does not contain retention ratios.
    """
    path = find_preset(model)
    return {} if path is None else dict(_read_ratios(path, path.stat().st_mtime_ns))


@lru_cache(maxsize=8)
def _read_ratios(path: Path, mtime_ns: int) -> dict[str, float]:
    """Read a file of ratios; a configuration is built for every change of a parameter."""
    del mtime_ns  # another time of change is another file
    try:
        content = parse_yaml(read_file(path, MAX_YAML_BYTES))
        ratios: Mapping[str, float] = content['/**']['ros__parameters']['retention_ratio']
        return {str(camera): float(ratio) for camera, ratio in ratios.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as err:
        raise ConfigError(
            f'{path}: not a file of retention ratios: {type(err).__name__}: {err}; write it '
            'again with p2d tune-ratios, or remove it'
        ) from err
