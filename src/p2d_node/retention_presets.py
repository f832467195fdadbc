"""Retention ratios that were tuned for a model: config/retention/<model>.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from p2d_node.errors import ConfigError
import yaml

FOLDERS = (Path('config/retention'), Path('share/p2d_node/config/retention'))
"""In the source tree, and in an installed workspace."""


def find_preset(model: str) -> Path | None:
    """Return the file with the ratios of `model`, a name or a folder; None where there is none."""
    name = f'{Path(model).name}.yaml'
    for parent in Path(__file__).resolve().parents:
        for folder in FOLDERS:
            if (parent / folder / name).is_file():
                return parent / folder / name
    return None


def tuned_ratios(model: str) -> dict[str, float]:
    """Return camera to retention ratio as tuned for `model`; empty where nothing was tuned.

    Raises:
        ConfigError: A file that holds something else.
    """
    path = find_preset(model)
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
        ratios: Mapping[str, float] = content['/**']['ros__parameters']['retention_ratio']
        return {str(camera): float(ratio) for camera, ratio in ratios.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as err:
        raise ConfigError(
            f'{path}: not a file of retention ratios: {type(err).__name__}: {err}; write it anew '
            'with p2d tune-ratios, or remove it'
        ) from err
