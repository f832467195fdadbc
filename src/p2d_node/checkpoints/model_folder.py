"""Converts the parameter `model`, a path or a name, to a checkpoint folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import tempfile

from p2d_node.checkpoints.untrained import write_untrained_checkpoint
from p2d_node.config import SHIPPED_MODEL, UNTRAINED_MODEL
from p2d_node.data_folders import data_folder
from p2d_node.errors import ConfigError


@contextmanager
def model_folder(model: str) -> Iterator[Path]:
    """Yield the folder of the parameter `model`.

    The folder of the model `untrained` is created, and removed at the end.

    Args:
        model: `p2d-mini`, `untrained` or the path of a checkpoint folder.

    Raises:
        ConfigError: p2d-mini is not installed with this package.
    """
    if model == SHIPPED_MODEL:
        yield shipped_model_folder()
    elif model == UNTRAINED_MODEL:
        with tempfile.TemporaryDirectory(prefix='p2d-') as folder:
            yield write_untrained_checkpoint(Path(folder) / 'p2d-random')
    else:
        yield Path(os.path.expanduser(model))


def shipped_model_folder() -> Path:
    """Return the folder of p2d-mini, in the source tree or in the share folder of the package.

    Raises:
        ConfigError: It is in neither.
    """
    folder = data_folder('models') / SHIPPED_MODEL
    if (folder / 'config.json').is_file():
        return folder
    raise ConfigError(
        f'model: {SHIPPED_MODEL} is not installed with this package; build ros2_ws from a whole '
        'source tree, or name a checkpoint folder'
    )
