"""Settings of other libraries that programs make before they import them."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
import logging
import os
from pathlib import Path
import shutil
import tempfile

NOISY_LOGGERS = ('torchao', 'torch.utils._pytree')
"""transformers imports torchao where it is installed. torchao then warns of compiled parts that do
not load, which are not used here, and torch warns of how torchao calls it."""

TORCH_CACHE = 'TORCHINDUCTOR_CACHE_DIR'

SKIP_FASTDDS_FILE = 'SKIP_DEFAULT_XML_FILE'
"""Of Fast DDS, which else reads profiles in the working folder; they may name files to write."""

SAFE_PATH = 'PYTHONSAFEPATH'
"""Of Python from 3.11 on."""


def prepare_libraries() -> None:
    """Set all of them. Programs call it before they import torch; libraries never do."""
    _forbid_downloads()
    _silence_import_warnings()
    _keep_torch_cache_private()
    _keep_fastdds_from_working_folder()


def _forbid_downloads() -> None:
    """Keep Hugging Face's libraries from the network, also if a checkpoint names a repository."""
    os.environ.update(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1')


def _silence_import_warnings() -> None:
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def _keep_torch_cache_private() -> None:
    """Give torch a folder of this user: its own lies in /tmp, where others can make it first."""
    if TORCH_CACHE in os.environ:
        return
    cache = os.environ.get('XDG_CACHE_HOME', '')
    folder = Path(cache if os.path.isabs(cache) else os.path.expanduser('~/.cache'))
    folder = folder / 'p2d_node' / 'torch'
    try:
        if not folder.is_absolute():
            raise FileNotFoundError('this user has no home')
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix='p2d-torch-'))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[TORCH_CACHE] = str(folder)


def _keep_fastdds_from_working_folder() -> None:
    os.environ.setdefault(SKIP_FASTDDS_FILE, '1')


@contextmanager
def safe_spawning() -> Iterator[None]:
    """Keep the working folder, which may be a data set, from the processes that the body starts.

    Those that multiprocessing spawns would import its own modules from there. Python 3.10 cannot
    do without.
    """
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = '1'
    try:
        yield
    finally:
        del os.environ[SAFE_PATH]
        if before is not None:
            os.environ[SAFE_PATH] = before
