"""A finished model comes in; a run starts from its weights, also under a new vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2d_node.errors import ConfigError
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from p2d_sim.training.tokenizer import make_tokenizer
from p2d_sim.training.trainer import Parts


def start_from(parts: Parts, folder: Path) -> None:
    """Take over the weights of the model in `folder`; auxiliary heads stay fresh.

    A token that its vocabulary does not have starts as the mean of the tokens it had instead.

    Raises:
        ConfigError: No such model, or one of another size.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        finished = LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError) as err:
        reason = str(err).partition('\n')[0]
        raise ConfigError(f'--start: {folder} holds no finished model: {reason}') from err
    for get in ('get_input_embeddings', 'get_output_embeddings'):
        embeddings = getattr(finished, get)()
        embeddings.weight = torch.nn.Parameter(_by_new_tokens(embeddings.weight, tokenizer))
    try:
        parts.model.load_state_dict(finished.state_dict())
    except RuntimeError as err:
        reason = str(err).strip().splitlines()[-1].strip()
        raise ConfigError(f'--start: {folder} is a model of another size: {reason}') from err


def _by_new_tokens(rows: Tensor, tokenizer: Any) -> Tensor:
    """Return the rows [tokens, hidden] of an old vocabulary for the tokens of the new one."""
    tokens = make_tokenizer().get_vocab()
    pieces = [
        tokenizer.encode(token, add_special_tokens=False)
        for token in sorted(tokens, key=tokens.__getitem__)
    ]
    return torch.stack([rows[ids].mean(dim=0) for ids in pieces])
