"""What is between prefill and decoding: a paused prefill, and a prefilled sequence."""

from __future__ import annotations

from dataclasses import dataclass

from p2d_node.language_model.input_sequence import InputSequence
from torch import Tensor
from transformers import Cache


@dataclass(frozen=True, slots=True)
class PausedPrefill:
    """A prefill that has run the layers before `prune_layer`, over all tokens.

    Attributes:
        inputs: The sequence, with its hidden states before layer `prune_layer`.
        cache: Keys and values of the layers that have run, and later of the others.
        prune_layer: The next layer to run.
    """

    inputs: InputSequence
    cache: Cache
    prune_layer: int

    @property
    def visual_states(self) -> Tensor:
        """Hidden states of the visual tokens, float [pictures, tokens, hidden]."""
        return self.inputs.visual_states


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefilled sequence of one or several rows that decoding continues from.

    Attributes:
        cache: Keys and values of every layer.
        prune_layer: The layers from this one on have cached fewer tokens than those before it.
        end_positions: int64 [rows], the position of the next token.
        is_real: Bool [rows, columns] over the last cached columns, False in padding columns; the
            columns before them hold no padding. None if there is no padding.
    """

    cache: Cache
    prune_layer: int
    end_positions: Tensor
    is_real: Tensor | None = None
