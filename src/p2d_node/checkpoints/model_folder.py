"""From the parameter `model` to a checkpoint folder: it is a path, or a name that needs none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import tempfile

from p2d_node.checkpoints.untrained import write_untrained_checkpoint
from p2d_node.config import SHIPPED_MODEL, UNTRAINED_MODEL
from p2d_node.errors import ConfigError


@contextmanager
def model_folder(model: str) -> Iterator[Path]:
    """Yield the folder that the parameter `model` names; `untrained` is made for the time.

    Raises:
        ConfigError: The model that ships is not where this package was installed.
    """
    if model == SHIPPED_MODEL:
        yield shipped_model_folder()
    elif model == UNTRAINED_MODEL:
        with tempfile.TemporaryDirectory(prefix='p2d-') as folder:
            yield write_untrained_checkpoint(Path(folder) / 'p2d-random')
    else:
        yield Path(model).expanduser()


def shipped_model_folder() -> Path:
    """Return where the model that ships lies: in the source tree, or in the package's share.

    Raises:
        ConfigError: In neither.
    """
    for parent in Path(__file__).resolve().parents:
        for folder in (parent / 'models', parent / 'share' / 'p2d_node' / 'models'):
            if (folder / SHIPPED_MODEL / 'config.json').is_file():
                return folder / SHIPPED_MODEL
    raise ConfigError(
        f'model: {SHIPPED_MODEL} is not installed with this package; build ros2_ws from a whole '
        'source tree, or name a checkpoint folder'
    )
