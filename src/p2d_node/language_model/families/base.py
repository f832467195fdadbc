"""What every model family promises to the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from p2d_node.language_model.decode import Decoder
from p2d_node.language_model.input_sequence import InputSequence
from p2d_node.language_model.prompt import Prompt
from torch import nn, Tensor


class Family(Protocol):
    """A loaded checkpoint: what the pipeline needs of it, under names that all families share.

    Attributes:
        vision_module: Maps pixel_values [views, 3, height, width] to visual_tokens [views, tokens,
            features]: the embeddings, and whatever else of theirs `embed_prefix` needs after them.
        decoder: The language model.
        grid: Rows and columns of the visual tokens of one view; they stand row by row.
        end_token_ids: Ids that end an answer.
        max_positions: Longest text, pictures included, that the language model was made for.
    """

    vision_module: nn.Module
    decoder: Decoder
    grid: tuple[int, int]
    end_token_ids: tuple[int, ...]
    max_positions: int

    def release_vision_module(self) -> None:
        """Free the vision weights, where an engine takes their place."""
        ...

    def build_prompt(self, question: str, cameras: Sequence[str]) -> Prompt:
        """Tokenise the chat with its pictures and `question`.

        There is one picture per camera, or one of all of them, as the checkpoint says.

        Raises:
            ConfigError: A chat template that fails, or drops or repeats pictures.
        """
        ...

    def special_tokens_in(self, text: str) -> list[str]:
        """Return the tokens in `text` that steer the model, as placeholders and ends of turns."""
        ...

    def embed_prefix(self, prompt: Prompt, visual_tokens: Tensor) -> InputSequence:
        """Lay out text and all visual tokens, up to and including the last view."""
        ...

    def embed_text(self, token_ids: Sequence[int], start: int) -> InputSequence:
        """Lay out text that begins at position `start`."""
        ...

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings [rows, length, hidden] of int64 [rows, length]."""
        ...

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Return the ids of an answer, without special tokens."""
        ...

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return the text of generated ids, without special tokens."""
        ...
