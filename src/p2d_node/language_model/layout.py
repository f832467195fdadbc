"""Text and visual tokens come in; the decoder's input sequence goes out.

Each token stands at its position. Dropping visual tokens leaves gaps: what stays keeps the
position that it had in the full sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Embedded:
    """A piece of the decoder's input sequence.

    Attributes:
        embeddings: Float [1, length, hidden].
        positions: int64 [1, length], each token's position in the full, unpruned sequence; with
            M-RoPE [3, 1, length]: time, row and column.
        end_position: The position of what comes next.
        views: Per view the columns of its visual tokens, in order.
        deepstack: Float [layers, visual tokens, hidden], or None: what is added to the hidden
            states of the visual tokens of all views after each of the first layers.
    """

    embeddings: Tensor
    positions: Tensor
    end_position: int
    views: tuple[slice, ...] = ()
    deepstack: Tensor | None = None

    @property
    def visual_columns(self) -> Tensor:
        """Columns of the visual tokens of all views, int64."""
        device = self.embeddings.device
        return torch.cat([torch.arange(v.start, v.stop, device=device) for v in self.views])


def text_positions(start: int, length: int, device: torch.device) -> Tensor:
    """Return the positions [1, length] of text that begins at `start`."""
    return torch.arange(start, start + length, device=device)[None]


def lay_out_views(
    segments: Sequence[Tensor], visual_tokens: Tensor, newline: Tensor | None
) -> Embedded:
    """Lay out text and all visual tokens in their order.

    Args:
        segments: Per view the embedded text before it, [length, hidden].
        visual_tokens: [views, tokens, hidden].
        newline: Embedding [hidden] that closes every view; None where the family has none.

    Returns:
        The sequence up to and including the last view; positions count its tokens.
    """
    num_tokens = visual_tokens.shape[1]
    pieces: list[Tensor] = []
    views: list[slice] = []
    start = 0
    for text, tokens in zip(segments, visual_tokens, strict=True):
        first = start + len(text)
        start = first + num_tokens
        pieces += [text.to(tokens.dtype), tokens]
        views.append(slice(first, start))
        if newline is not None:
            pieces.append(newline.view(1, -1).to(tokens.dtype))
            start += 1
    positions = text_positions(0, start, visual_tokens.device)
    return Embedded(torch.cat(pieces)[None], positions, start, tuple(views))


def keep_tokens(inputs: Embedded, keep_indices: Sequence[Tensor]) -> Embedded:
    """Drop the visual tokens that are not kept; everything else stays, at its position.

    Args:
        inputs: A sequence with all visual tokens.
        keep_indices: Per view the kept indices, int64, ascending.
    """
    device = inputs.embeddings.device
    columns: list[Tensor] = []
    visual: list[Tensor] = []
    views: list[slice] = []
    start = first = num_columns = num_visual = 0
    for view, keep in zip(inputs.views, keep_indices, strict=True):
        columns += [torch.arange(start, view.start, device=device), keep + view.start]
        visual.append(keep + num_visual)
        first = num_columns + view.start - start
        num_columns = first + len(keep)
        views.append(slice(first, num_columns))
        start = view.stop
        num_visual += view.stop - view.start
    columns.append(torch.arange(start, inputs.embeddings.shape[1], device=device))
    kept = torch.cat(columns)
    deepstack = inputs.deepstack
    return Embedded(
        inputs.embeddings[:, kept],
        inputs.positions[..., kept],
        inputs.end_position,
        tuple(views),
        None if deepstack is None else deepstack[:, torch.cat(visual)],
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """Pieces of different lengths as one batch, padded on the left.

    Attributes:
        embeddings: Float [rows, longest, hidden].
        positions: int64 [rows, longest].
        end_positions: int64 [rows].
        is_real: Bool [rows, longest], False where a column is padding; None where there is none.
    """

    embeddings: Tensor
    positions: Tensor
    end_positions: Tensor
    is_real: Tensor | None


def stack_rows(pieces: Sequence[Embedded]) -> Rows:
    """Put text pieces into one batch."""
    device = pieces[0].embeddings.device
    lengths = [piece.embeddings.shape[1] for piece in pieces]
    longest = max(lengths)
    hidden = pieces[0].embeddings.shape[2]
    embeddings = pieces[0].embeddings.new_zeros(len(pieces), longest, hidden)
    positions = torch.zeros(len(pieces), longest, dtype=torch.int64, device=device)
    for row, (piece, length) in enumerate(zip(pieces, lengths, strict=True)):
        embeddings[row, longest - length :] = piece.embeddings[0]
        positions[row, longest - length :] = piece.positions[0]
    ends = torch.tensor([piece.end_position for piece in pieces], device=device)
    is_real = None
    if min(lengths) < longest:
        padding = torch.tensor([longest - length for length in lengths], device=device)
        is_real = torch.arange(longest, device=device) >= padding[:, None]
    return Rows(embeddings, positions, ends, is_real)
