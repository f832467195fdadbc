"""What every model family promises to the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from p2d_node.language_model.decode import Decoder, Embedded
from p2d_node.language_model.prompt import Prompt
from torch import nn, Tensor


class Family(Protocol):
    """A loaded checkpoint: what the pipeline needs of it, under names that all families share.

    Attributes:
        vision_module: Maps pixel_values [views, 3, height, width] to visual_tokens.
        decoder: The language model.
        grid: Rows and columns of the visual tokens of one view; they stand row by row.
        end_token_ids: Ids that end an answer.
    """

    vision_module: nn.Module
    decoder: Decoder
    grid: tuple[int, int]
    end_token_ids: tuple[int, ...]

    def build_prompt(self, question: str, cameras: Sequence[str]) -> Prompt:
        """Tokenise the chat with one picture per camera and `question`.

        Raises:
            ConfigError: A chat template that drops or repeats pictures.
        """
        ...

    def embed_prefix(
        self, prompt: Prompt, visual_tokens: Tensor, keep_indices: Sequence[Tensor]
    ) -> Embedded:
        """Lay out text and kept visual tokens up to and including the last view."""
        ...

    def embed_question(self, prompt: Prompt, start: int) -> Embedded:
        """Lay out the prompt's last part, from position `start` on."""
        ...

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings [1, length, hidden] of int64 [1, length]."""
        ...

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return the words of generated ids, without special tokens."""
        ...
