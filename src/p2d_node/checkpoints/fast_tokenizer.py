"""The folder of a checkpoint comes in; its tokenizer goes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2d_node.checkpoints.settings_limits import TOKENIZER_FILE
from p2d_node.checkpoints.tokenizer_limits import check_token_lengths
from p2d_node.errors import checkpoint_faults, ConfigError
from p2d_node.held_stderr import held_stderr
from transformers import PreTrainedTokenizerFast


def load_fast_tokenizer(folder: Path, *, parameter: str = 'model') -> Any:
    """Load tokenizer.json with the files of settings beside it; see `check_limits`.

    Args:
        folder: The checkpoint.
        parameter: The parameter that names it; messages begin with it.

    Raises:
        ConfigError: The file is missing or does not load, or a token is too long.
    """
    what = f'{parameter}: ' if parameter else ''
    if not (folder / TOKENIZER_FILE).is_file():  # transformers would make one of unchecked files
        raise ConfigError(
            f'{what}{folder / TOKENIZER_FILE} is missing; copy it, or save the tokenizer with '
            'save_pretrained'
        )
    with checkpoint_faults(folder, part='the tokenizer', parameter=parameter), held_stderr():
        # AutoTokenizer would read config.json, which may name any class.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    # Other files than tokenizer.json bring tokens, too.
    check_token_lengths(f'{what}{folder}', map(len, tokenizer.get_added_vocab()))
    return tokenizer
