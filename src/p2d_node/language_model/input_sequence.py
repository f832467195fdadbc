"""The decoder's input: embedded text and visual tokens, each at its position.

Dropping visual tokens leaves gaps in the positions: a kept token keeps the position that it has in
the full sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class InputSequence:
    """Hidden states of consecutive tokens, before some decoder layer.

    Attributes:
        hidden_states: Float [1, length, hidden]; before layer 0 these are the embeddings.
        positions: int64 [1, length], each token's position in the full, unpruned sequence; with
            M-RoPE [3, 1, length]: time, row and column.
        end_position: Position of the next token.
        pictures: Per picture the columns of its visual tokens.
        deepstack: Float [layers, visual tokens, hidden], added to the hidden states of all visual
            tokens after each of the first layers; None if the family has none.
    """

    hidden_states: Tensor
    positions: Tensor
    end_position: int
    pictures: tuple[slice, ...] = ()
    deepstack: Tensor | None = None

    @property
    def visual_states(self) -> Tensor:
        """Hidden states of the visual tokens, float [pictures, tokens, hidden]."""
        return torch.stack([self.hidden_states[0, picture] for picture in self.pictures])

    @property
    def visual_columns(self) -> Tensor:
        """Columns of the visual tokens of all pictures, int64."""
        device = self.hidden_states.device
        return torch.cat([torch.arange(p.start, p.stop, device=device) for p in self.pictures])


def text_positions(start: int, length: int, device: torch.device) -> Tensor:
    """Return the positions int64 [1, length] of text that begins at `start`."""
    return torch.arange(start, start + length, device=device)[None]


def interleave_pictures(
    segments: Sequence[Tensor], visual_tokens: Tensor, newline: Tensor | None
) -> InputSequence:
    """Concatenate text segments and pictures in prompt order.

    Args:
        segments: Per picture the embedded text before it, [length, hidden].
        visual_tokens: [pictures, tokens, hidden].
        newline: Embedding [hidden] after every picture; None if the family has none.

    Returns:
        The sequence up to and including the last picture, with consecutive positions.
    """
    num_tokens = visual_tokens.shape[1]
    pieces: list[Tensor] = []
    pictures: list[slice] = []
    end = 0
    for text, tokens in zip(segments, visual_tokens, strict=True):
        start = end + len(text)
        end = start + num_tokens
        pieces += [text.to(tokens.dtype), tokens]
        pictures.append(slice(start, end))
        if newline is not None:
            pieces.append(newline.view(1, -1).to(tokens.dtype))
            end += 1
    positions = text_positions(0, end, visual_tokens.device)
    return InputSequence(torch.cat(pieces)[None], positions, end, tuple(pictures))


def drop_tokens(inputs: InputSequence, keep_indices: Sequence[Tensor]) -> InputSequence:
    """Drop the visual tokens that are not kept; all other tokens stay, at their positions.

    Args:
        inputs: A sequence with all visual tokens.
        keep_indices: Per picture the kept indices, int64, ascending.
    """
    device = inputs.hidden_states.device
    columns: list[Tensor] = []
    visual: list[Tensor] = []
    pictures: list[slice] = []
    text_start = num_columns = num_visual = 0
    for picture, keep in zip(inputs.pictures, keep_indices, strict=True):
        columns += [torch.arange(text_start, picture.start, device=device), keep + picture.start]
        visual.append(keep + num_visual)
        start = num_columns + picture.start - text_start
        num_columns = start + len(keep)
        pictures.append(slice(start, num_columns))
        text_start = picture.stop
        num_visual += picture.stop - picture.start
    columns.append(torch.arange(text_start, inputs.hidden_states.shape[1], device=device))
    kept = torch.cat(columns)
    deepstack = inputs.deepstack
    return InputSequence(
        inputs.hidden_states[:, kept],
        inputs.positions[..., kept],
        inputs.end_position,
        tuple(pictures),
        None if deepstack is None else deepstack[:, torch.cat(visual)],
    )


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Text sequences of different lengths as one batch, padded on the left.

    Attributes:
        embeddings: Float [rows, longest, hidden].
        positions: int64 [rows, longest].
        end_positions: int64 [rows].
        is_real: Bool [rows, longest], False in padding columns; None if there is no padding.
    """

    embeddings: Tensor
    positions: Tensor
    end_positions: Tensor
    is_real: Tensor | None


def pad_to_batch(texts: Sequence[InputSequence]) -> PaddedBatch:
    """Pad text sequences on the left to the length of the longest."""
    device = texts[0].hidden_states.device
    lengths = [text.hidden_states.shape[1] for text in texts]
    longest = max(lengths)
    hidden = texts[0].hidden_states.shape[2]
    embeddings = texts[0].hidden_states.new_zeros(len(texts), longest, hidden)
    positions = torch.zeros(len(texts), longest, dtype=torch.int64, device=device)
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        embeddings[row, longest - length :] = text.hidden_states[0]
        positions[row, longest - length :] = text.positions[0]
    ends = torch.tensor([text.end_position for text in texts], device=device)
    is_real = None
    if min(lengths) < longest:
        padding = torch.tensor([longest - length for length in lengths], device=device)
        is_real = torch.arange(longest, device=device) >= padding[:, None]
    return PaddedBatch(embeddings, positions, ends, is_real)
