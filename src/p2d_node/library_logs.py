"""Keeps import warnings of other libraries out of a user's terminal."""

from __future__ import annotations

import logging

NOISY_LOGGERS = ('torchao', 'torch.utils._pytree')
"""transformers imports torchao where it is installed. torchao then warns of compiled parts that do
not load, which are not used here, and torch warns of how torchao calls it."""


def silence_import_warnings() -> None:
    """Hide those warnings. Programs call it before they import torch; libraries never do."""
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
