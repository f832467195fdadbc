"""T-FPS on a GPU as two Triton kernels: one for all cosines, one that picks.

Visual tokens [views, tokens, hidden] come in; picks in their order, int64 [views, picks], go out.
Nothing waits for the device. The similarity matrix is symmetric: the first kernel computes only
the tiles on and right of the diagonal and writes each one twice. It multiplies float16 and
bfloat16 tokens without conversion: their products are exact in float32, and are summed in float32.
It multiplies float32 tokens in full float32, never TF32. The second kernel runs one program per
view and keeps the view's running maxima on chip.
"""

from __future__ import annotations

from p2d_node.token_selection.base import inverse_norms
from p2d_node.token_selection.tfps_batched import equality_threshold, initial_maxima
import torch
from torch import Tensor
import triton
import triton.language as tl

TILE = 64
"""Rows and columns of a tile of the similarity matrix, tokens."""

HIDDEN_STEP = 32
"""Features per step of a tile's dot products."""


@triton.jit  # type: ignore[untyped-decorator]
def _similarity_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    tokens,  # float [views, num_tokens, hidden], contiguous
    inverse,  # float32 [views, num_tokens]
    similarity,  # float32 [views, num_tokens, num_tokens], written
    num_tokens,
    hidden,
    equality_threshold,
    TILE: tl.constexpr,
    HIDDEN_STEP: tl.constexpr,
):
    """Compute one tile of cosines and its transpose; -inf on the diagonal."""
    row_tile = tl.program_id(0)
    column_tile = tl.program_id(1)
    view = tl.program_id(2).to(tl.int64)
    if column_tile < row_tile:
        return
    rows = row_tile * TILE + tl.arange(0, TILE)
    columns = column_tile * TILE + tl.arange(0, TILE)
    view_tokens = tokens + view * num_tokens * hidden
    total = tl.zeros([TILE, TILE], dtype=tl.float32)
    for start in range(0, hidden, HIDDEN_STEP):
        features = start + tl.arange(0, HIDDEN_STEP)
        left = tl.load(
            view_tokens + rows[:, None] * hidden + features[None, :],
            mask=(rows[:, None] < num_tokens) & (features[None, :] < hidden),
            other=0.0,
        )
        right = tl.load(
            view_tokens + columns[None, :] * hidden + features[:, None],
            mask=(columns[None, :] < num_tokens) & (features[:, None] < hidden),
            other=0.0,
        )
        total = tl.dot(left, right, acc=total, input_precision='ieee')
    left_scale = tl.load(inverse + view * num_tokens + rows, mask=rows < num_tokens, other=0.0)
    right_scale = tl.load(
        inverse + view * num_tokens + columns, mask=columns < num_tokens, other=0.0
    )
    # One product of the two scales, the same in both orders, so that equal tokens tie.
    scale = left_scale[:, None] * right_scale[None, :]
    cosine = tl.where(scale > 0, total * scale, 0.0)
    cosine = tl.where(cosine > equality_threshold, 1.0, cosine)
    cosine = tl.where(rows[:, None] == columns[None, :], float('-inf'), cosine)
    inside = (rows[:, None] < num_tokens) & (columns[None, :] < num_tokens)
    out = similarity + view * num_tokens * num_tokens
    tl.store(out + rows[:, None] * num_tokens + columns[None, :], cosine, mask=inside)
    inside_transpose = (columns[:, None] < num_tokens) & (rows[None, :] < num_tokens)
    tl.store(
        out + columns[:, None] * num_tokens + rows[None, :],
        tl.trans(cosine),
        mask=inside_transpose,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _pick_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    similarity,  # float32 [views, num_tokens, num_tokens], -inf on the diagonal
    nearest,  # float32 [views, num_tokens]: largest similarity to another token
    initial,  # float32 [views, num_tokens]: initial running maxima
    order,  # int64 [views, num_picks], written
    num_tokens,
    num_picks,
    BLOCK: tl.constexpr,
):
    """Pick for one view, with its running maxima on chip."""
    view = tl.program_id(0).to(tl.int64)
    tokens = tl.arange(0, BLOCK)
    inside = tokens < num_tokens
    score = tl.load(nearest + view * num_tokens + tokens, mask=inside, other=float('inf'))
    to_picks = tl.load(initial + view * num_tokens + tokens, mask=inside, other=float('inf'))
    pick = tl.argmin(score, axis=0)
    for step in range(num_picks):
        tl.store(order + view * num_picks + step, pick.to(tl.int64))
        row = similarity + (view * num_tokens + pick) * num_tokens
        to_picks = tl.maximum(to_picks, tl.load(row + tokens, mask=inside, other=float('inf')))
        to_picks = tl.where(tokens == pick, float('inf'), to_picks)
        pick = tl.argmin(to_picks, axis=0)


def triton_order(visual_tokens: Tensor, num_picks: int) -> Tensor:
    """Return the picks of all views in their order.

    Args:
        visual_tokens: Float [views, tokens, hidden] on a GPU.
        num_picks: Number of picks per view, in [1, tokens).

    Returns:
        Int64 [views, num_picks], on the tokens' device.
    """
    tokens = visual_tokens.contiguous()
    if tokens.dtype == torch.float64:
        tokens = tokens.float()
    num_views, num_tokens, hidden = tokens.shape
    inverse, usable = inverse_norms(tokens)
    initial = initial_maxima(usable)
    similarity = initial.new_empty(num_views, num_tokens, num_tokens)
    tiles = triton.cdiv(num_tokens, TILE)
    _similarity_kernel[(tiles, tiles, num_views)](
        tokens,
        inverse,
        similarity,
        num_tokens,
        hidden,
        equality_threshold(hidden),
        TILE=TILE,
        HIDDEN_STEP=HIDDEN_STEP,
    )
    nearest = torch.maximum(similarity.amax(dim=1), initial)
    order = torch.empty(num_views, num_picks, dtype=torch.int64, device=tokens.device)
    _pick_kernel[(num_views,)](
        similarity,
        nearest,
        initial,
        order,
        num_tokens,
        num_picks,
        BLOCK=triton.next_power_of_2(num_tokens),
        num_warps=4 if num_tokens <= 1024 else 8,
    )
    return order
