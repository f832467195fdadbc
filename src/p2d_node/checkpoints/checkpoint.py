"""A checkpoint folder in Hugging Face format, checked without loading its weights."""

from __future__ import annotations

from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

from p2d_node.errors import ConfigError
from p2d_node.views import Mosaic

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
    """Check that `folder` holds a checkpoint, without loading weights or knowing its family.

    Raises:
        ConfigError: The folder, its config or its weights are missing.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ConfigError(
            f'model: got {str(folder)!r}, which is not a folder; allowed: a checkpoint folder in '
            'Hugging Face format, or p2d-mini, which ships'
        )
    config = _read_config(path)
    if not any(path.glob('*.safetensors')):
        raise ConfigError(
            f'model: {path} has no weights: no *.safetensors file in it; copy the checkpoint '
            'again (pickled .bin weights are never loaded)'
        )
    return Checkpoint(
        path,
        str(config.get('model_type')),
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
