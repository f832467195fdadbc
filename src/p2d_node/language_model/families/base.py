"""The interface of a loaded checkpoint, the same for all model families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from p2d_node.language_model.decode import Decoder
from p2d_node.language_model.input_sequence import InputSequence
from p2d_node.language_model.prompt import Prompt
from torch import nn, Tensor


class Family(Protocol):
    """A loaded checkpoint.

    Attributes:
        vision_module: Maps pixel_values, float [pictures, 3, height, width], to visual_tokens,
            float [pictures, tokens, features]. Features are the embedding [hidden], followed by
            the deepstack features of the token if the family has them.
        decoder: The language model.
        grid: Rows and columns of the visual tokens of one picture, in row-major order.
        end_token_ids: Ids that end an answer.
        max_positions: Maximum number of tokens of the language model, visual tokens included.
        num_features: Features of a visual token.
    """

    vision_module: nn.Module
    decoder: Decoder
    grid: tuple[int, int]
    end_token_ids: tuple[int, ...]
    max_positions: int
    num_features: int

    def check_num_tokens(self, num_tokens: int) -> None:
        """Check what a prompt of so many tokens costs.

        Raises:
            ConfigError: Attention takes far more time or memory than in models of such weights.
        """
        ...

    def release_vision_module(self) -> None:
        """Free the vision weights; an engine replaces them."""
        ...

    def build_prompt(self, question: str, cameras: Sequence[str], context: str = '') -> Prompt:
        """Tokenise the chat with its pictures and `question`.

        Args:
            question: The question.
            cameras: The camera of each picture; in a clip once per frame, oldest first. A mosaic
                is one picture of all of them.
            context: What stands before the question; may be empty.

        Raises:
            ConfigError: The chat template fails, or drops or repeats pictures, or the model does
                not know a camera.
        """
        ...

    def find_special_tokens(self, text: str) -> list[str]:
        """Return the special tokens in `text`, such as image placeholders and ends of turns.

        Raises:
            ConfigError: The tokenizer takes too long for it, or makes too many tokens of it.
        """
        ...

    def embed_prefix(self, prompt: Prompt, visual_tokens: Tensor) -> InputSequence:
        """Return the prompt up to and including the last picture, with all its visual tokens.

        Args:
            prompt: From `build_prompt`.
            visual_tokens: Float [pictures, tokens, features], from `vision_module` or an engine.
        """
        ...

    def embed_text(self, token_ids: Sequence[int], start: int) -> InputSequence:
        """Return text whose first token has position `start`."""
        ...

    def embed(self, token_ids: Tensor) -> Tensor:
        """Map ids, int64 [rows, length], to embeddings, float [rows, length, hidden]."""
        ...

    def tokenize(self, text: str) -> tuple[int, ...]:
        """Return the ids of `text`, without adding special tokens."""
        ...

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of generated ids, without special tokens."""
        ...
