"""Starts a run from the weights of a trained model, also with another vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2d_node.errors import checkpoint_faults, ConfigError
import torch
from torch import Tensor

from p2d_sim.training.model import load_trained
from p2d_sim.training.tokenizer import make_tokenizer
from p2d_sim.training.trainer import Parts


def start_from(parts: Parts, folder: Path) -> None:
    """Copy the weights of the model in `folder` into `parts`; auxiliary heads stay as they are.

    A new token starts as the mean of the tokens that stood for it in the old vocabulary.

    Raises:
        ConfigError: The folder holds no trained model, or one of another size.
    """
    tokenizer, trained = load_trained('start', folder)
    with checkpoint_faults(folder, parameter='start'):
        for get in ('get_input_embeddings', 'get_output_embeddings'):
            embeddings = getattr(trained, get)()
            embeddings.weight = torch.nn.Parameter(_map_tokens(embeddings.weight, tokenizer))
    try:
        parts.model.load_state_dict(trained.state_dict())
    except RuntimeError as err:
        reason = str(err).strip().splitlines()[-1].strip()
        raise ConfigError(f'start: {folder} is a model of another size: {reason}') from err


def _map_tokens(rows: Tensor, tokenizer: Any) -> Tensor:
    """Map embeddings [old tokens, hidden] to [new tokens, hidden]."""
    tokens = make_tokenizer().get_vocab()
    pieces = [
        tokenizer.encode(token, add_special_tokens=False)
        for token in sorted(tokens, key=tokens.__getitem__)
    ]
    return torch.stack([rows[ids].mean(dim=0) for ids in pieces])
