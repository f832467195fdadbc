"""The vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL for pictures of one size.

transformers' towers take pictures of any sizes in one packed sequence, so their graph depends on
the values of a tensor and cannot be exported. With one size, what depends on it is constant: the
rotary phases, the table of positions (Qwen3-VL) and the windows (Qwen2.5-VL). Pictures then are a
batch. The weights are those of transformers' modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from p2d_node.language_model.fused_layers import rotate
import torch
from torch import nn, Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Windows:
    """Windows of attention in the patches of one picture, padded to equal length.

    Attributes:
        members: int64 [windows, length], numbers of patches; padding repeats the first.
        is_real: Bool [windows, 1, 1, length], False for padding; None if there is none.
        places: int64 [patches], where each patch stands in the flattened windows.
    """

    members: Tensor
    is_real: Tensor | None
    places: Tensor


class QwenVision(nn.Module):
    """Vision tower and mergers; maps pixel_values to visual_tokens.

    Patches are ordered by block: the patches of one visual token follow each other.
    """

    def __init__(self, visual: Any, grid: tuple[int, int]) -> None:
        """Wrap a loaded tower, on its device.

        Args:
            visual: transformers' tower; with eager attention it can be exported for TensorRT.
            grid: Rows and columns of the visual tokens of a picture.
        """
        super().__init__()
        config = visual.config
        self.visual = visual
        self._rows, self._columns = grid
        self._merge, self._patch = config.spatial_merge_size, config.patch_size
        self._num_frames = config.temporal_patch_size
        self._num_heads = config.num_heads
        self._is_eager = config._attn_implementation == 'eager'
        self._deepstack_layers = tuple(getattr(config, 'deepstack_visual_indexes', ()))
        device = visual.patch_embed.proj.weight.device
        places = patch_places(grid, self._merge).to(device)
        # Plain attributes: `to(dtype)` would round the phases of buffers.
        self._phases = rotary_phases(places, visual.rotary_pos_emb.inv_freq)
        table = getattr(visual, 'pos_embed', None)
        self._positions = None if table is None else position_table(table.weight, places)
        self._windows: Windows | None = None
        self._global_layers = tuple(range(config.depth))
        if hasattr(config, 'fullatt_block_indexes'):
            self._global_layers = tuple(config.fullatt_block_indexes)
            side = config.window_size // self._patch
            self._windows = make_windows(places, side)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map float [pictures, 3, height, width] to float [pictures, tokens, features].

        Features are the embedding [hidden] and the deepstack features [layers * hidden], if any.
        """
        hidden = self._embed(pixel_values)
        features = []
        for index, block in enumerate(self.visual.blocks):
            windows = None if index in self._global_layers else self._windows
            hidden = hidden + self._attend(block.attn, block.norm1(hidden), windows)
            hidden = hidden + block.mlp(block.norm2(hidden))
            if index in self._deepstack_layers:
                number = self._deepstack_layers.index(index)
                features.append(self.visual.deepstack_merger_list[number](hidden.flatten(0, 1)))
        tokens = torch.cat([self.visual.merger(hidden.flatten(0, 1)), *features], dim=-1)
        return tokens.reshape(len(pixel_values), self._rows * self._columns, -1)

    def _embed(self, pixel_values: Tensor) -> Tensor:
        """Return the embedded patches, float [pictures, patches, width]."""
        projection = self.visual.patch_embed.proj
        patches = self._to_patches(pixel_values)
        # The kernel covers a patch exactly, so the convolution is a matrix product.
        hidden = functional.linear(patches, projection.weight.flatten(1), projection.bias)
        if self._positions is None:
            return hidden
        return hidden + self._positions.to(hidden.dtype)

    def _to_patches(self, pixel_values: Tensor) -> Tensor:
        """Split pictures into flat patches.

        Patches span several video frames, so a picture is repeated in all of them.

        Args:
            pixel_values: Float [pictures, 3, height, width].

        Returns:
            Float [pictures, patches, 3 * frames * patch * patch].
        """
        pictures, channels = pixel_values.shape[:2]
        merge, patch = self._merge, self._patch
        blocks = pixel_values.reshape(
            pictures, channels, self._rows, merge, patch, self._columns, merge, patch
        )
        # Pictures, rows, columns, row in block, column in block, channels, y, x: eight dimensions
        # are as many as TensorRT allows.
        patches = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)
        num_patches = self._rows * self._columns * merge * merge
        patches = patches.reshape(pictures, num_patches, channels, 1, patch * patch)
        return patches.expand(-1, -1, -1, self._num_frames, -1).flatten(2)

    def _attend(self, attention: Any, hidden: Tensor, windows: Windows | None) -> Tensor:
        """Return the attention of a layer, float [pictures, patches, width]."""
        heads = attention.qkv(hidden).unflatten(-1, (3, self._num_heads, -1))
        rotated = _rotate(heads[:, :, :2], *self._phases)
        queries, keys = rotated.transpose(1, 3).unbind(2)  # [pictures, heads, patches, size]
        values = heads[:, :, 2].transpose(1, 2)
        if windows is None:
            mask = None
        else:
            queries, keys, values = (
                part[:, :, windows.members].transpose(1, 2).flatten(0, 1)
                for part in (queries, keys, values)
            )
            mask = windows.is_real
            if mask is not None:
                mask = mask.repeat(len(hidden), 1, 1, 1)
        attended = self._softmax_attention(queries, keys, values, mask)
        attended = attended.transpose(1, 2).flatten(2)
        if windows is not None:
            attended = attended.reshape(len(hidden), -1, attended.shape[-1])[:, windows.places]
        output: Tensor = attention.proj(attended)
        return output

    def _softmax_attention(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        if not self._is_eager:
            return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = functional.softmax(scores, dim=-1, dtype=torch.float32)
        return weights.to(queries.dtype) @ values


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary phases [patches, size] to float [pictures, patches, 2, heads, size]."""
    # In float32, as transformers' towers do, also for float64.
    return rotate(states.float(), cos[:, None, None], sin[:, None, None]).to(states.dtype)


def patch_places(grid: tuple[int, int], merge: int) -> Tensor:
    """Return row and column of each patch, int64 [patches, 2], ordered by block.

    Args:
        grid: Rows and columns of the visual tokens.
        merge: Patches per side of a token.
    """
    rows, columns = torch.meshgrid(
        torch.arange(grid[0] * merge), torch.arange(grid[1] * merge), indexing='ij'
    )
    places = torch.stack([rows, columns], dim=-1)
    blocks = places.reshape(grid[0], merge, grid[1], merge, 2).transpose(1, 2)
    return blocks.reshape(-1, 2)


def rotary_phases(places: Tensor, inverse_frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, float32 [patches, head size]: rows and columns, twice."""
    angles = (places[..., None].float() * inverse_frequencies.float()).flatten(1)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


@torch.no_grad()
def position_table(table: Tensor, places: Tensor) -> Tensor:
    """Return the learned positions of the patches, float [patches, width].

    Args:
        table: [side * side, width]; it is stretched over the picture, corner to corner, with
            bilinear interpolation.
        places: From `patch_places`.
    """
    side = round(len(table) ** 0.5)
    taps, weights = [], []
    for axis in range(2):
        index = places[:, axis]
        source = index.float() * (side - 1) / max(int(index.max()), 1)
        first = source.floor()
        both = first[:, None] + torch.arange(2, device=places.device)
        weights.append(1 - (source[:, None] - both).abs())
        taps.append(both.long().clamp(max=side - 1))
    indices = (taps[0][:, :, None] * side + taps[1][:, None]).flatten(1)
    shares = (weights[0][:, :, None] * weights[1][:, None]).flatten(1)
    positions: Tensor = (table[indices] * shares[..., None]).sum(1)
    return positions


def make_windows(places: Tensor, side: int) -> Windows | None:
    """Return the windows of `side` x `side` patches; None if all patches are in one.

    Windows at the right and lower edges may be smaller.
    """
    cells = places // side
    numbers = cells[:, 0] * (int(cells[:, 1].max()) + 1) + cells[:, 1]
    groups = [torch.nonzero(numbers == number)[:, 0] for number in torch.unique(numbers)]
    if len(groups) == 1:
        return None
    length = max(map(len, groups))
    members = torch.stack(
        [torch.cat([group, group[:1].expand(length - len(group))]) for group in groups]
    )
    sizes = torch.tensor([len(group) for group in groups], device=places.device)
    is_real = torch.arange(length, device=places.device) < sizes[:, None]
    standing = torch.empty(len(places), dtype=torch.int64, device=places.device)
    standing[members[is_real]] = torch.nonzero(is_real.flatten())[:, 0]
    has_padding = not bool(is_real.all())
    return Windows(members, is_real[:, None, None] if has_padding else None, standing)
