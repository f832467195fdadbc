"""Settings of other libraries that programs make before they import them."""

from __future__ import annotations

import logging
import os

NOISY_LOGGERS = ('torchao', 'torch.utils._pytree')
"""transformers imports torchao where it is installed. torchao then warns of compiled parts that do
not load, which are not used here, and torch warns of how torchao calls it."""


def forbid_downloads() -> None:
    """Keep Hugging Face's libraries from the network, also if a checkpoint names a repository."""
    os.environ.update(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1')


def silence_import_warnings() -> None:
    """Hide those warnings. Programs call it before they import torch; libraries never do."""
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
