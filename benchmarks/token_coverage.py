"""How close the dropped tokens of a sweep are to the kept ones: figures and a plot.

Visual tokens and the names of selection methods come in; per method the distance of dropped tokens
to the nearest kept one goes out, and a plot of what each method keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from p2d_node.benchmarks.selection import choose_tokens
from p2d_node.durable_files import refuse_link
from p2d_node.errors import ConfigError
from p2d_node.figures import new_figure
import torch
from torch import Tensor

NOTHING_KEPT = 2.0
"""Distance where a view keeps nothing: the largest that 1 - cosine can be."""

DIMMED = 0.25
"""Brightness of dropped patches in the plot."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Distance (1 - cosine) of dropped tokens to the nearest kept token of their view.

    Attributes:
        mean_distance: Over all dropped tokens of all views; 0 where nothing was dropped.
        worst_distance: The largest of them.
        num_kept: Kept tokens per view.
    """

    mean_distance: float
    worst_distance: float
    num_kept: tuple[int, ...]


def coverage_of(visual_tokens: Tensor, keep_indices: Sequence[Tensor]) -> Coverage:
    """Measure how far dropped tokens are from kept ones.

    Args:
        visual_tokens: Float [views, tokens, hidden].
        keep_indices: Per view the kept indices, int64.
    """
    distances = torch.cat(
        [
            _distances_to_kept(tokens, kept)
            for tokens, kept in zip(visual_tokens, keep_indices, strict=True)
        ]
    )
    return Coverage(
        mean_distance=float(distances.mean()) if len(distances) else 0.0,
        worst_distance=float(distances.max()) if len(distances) else 0.0,
        num_kept=tuple(len(kept) for kept in keep_indices),
    )


def _distances_to_kept(tokens: Tensor, kept: Tensor) -> Tensor:
    """Return the distance of each dropped token [tokens, hidden] to its nearest kept one."""
    dropped = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    dropped[kept] = False
    if len(kept) == 0:
        return torch.full((len(tokens),), NOTHING_KEPT, dtype=torch.float64)
    unit = torch.nn.functional.normalize(tokens.double(), dim=-1)
    return (1.0 - unit[dropped] @ unit[kept].T).amin(dim=1).clamp(min=0.0).cpu()


def compare_coverage(
    visual_tokens: Tensor, num_keep: Sequence[int], methods: Sequence[str]
) -> dict[str, tuple[Coverage, list[Tensor]]]:
    """Let each method choose and measure its choice.

    Args:
        visual_tokens: Float [views, tokens, hidden].
        num_keep: Per view how many tokens stay.
        methods: As for `choose_tokens`.

    Returns:
        Method to its coverage and its kept indices per view.
    """
    chosen = {method: choose_tokens(visual_tokens, num_keep, method) for method in methods}
    return {method: (coverage_of(visual_tokens, kept), kept) for method, kept in chosen.items()}


def kept_mask(kept: Tensor, num_tokens: int) -> npt.NDArray[np.float32]:
    """Return the patches of one square view: 1 where kept, `DIMMED` where dropped.

    Args:
        kept: Kept indices, int64, row-major.
        num_tokens: Number of patches, a square number.

    Returns:
        Float32 [rows, columns].

    Raises:
        ConfigError: `num_tokens` is not a square number.
    """
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise ConfigError(f'plot: got {num_tokens} tokens per view, allowed: a square number')
    mask = np.full(num_tokens, DIMMED, dtype=np.float32)
    mask[kept.cpu().numpy()] = 1.0
    return mask.reshape(side, side)


def check_plot_path(path: Path) -> None:
    """Check before the work that a plot can be written.

    Raises:
        ConfigError: It is a link, the folder does not exist, or matplotlib writes no files with
            this suffix.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    kinds = FigureCanvasAgg.get_supported_filetypes()
    kind = path.suffix.removeprefix('.').lower()
    if kind and kind not in kinds:
        raise ConfigError(
            f'plot: got {str(path)!r}, allowed: a name that ends in one of {", ".join(kinds)}'
        )
    refuse_link(path, 'plot')
    if not path.parent.is_dir():
        raise ConfigError(f'plot: got {str(path)!r}, but {path.parent} is not a folder; make it')


def plot_kept_tokens(
    path: Path,
    keep_indices: Mapping[str, Sequence[Tensor]],
    num_tokens: int,
    *,
    view_names: Sequence[str],
    images: Sequence[npt.NDArray[np.uint8]] | None = None,
) -> None:
    """Draw one row per method and one column per view, kept patches lit.

    Args:
        path: Picture to write, e.g. a PNG.
        keep_indices: Method to its kept indices per view.
        num_tokens: Patches per view, a square number.
        view_names: Titles of the columns.
        images: Per view uint8 [height, width, 3]; None: plain patches.

    Raises:
        ConfigError: `num_tokens` is not a square number, or the picture cannot be written.
    """
    rows, columns = len(keep_indices), len(view_names)
    figure = new_figure(2.0 * columns, 2.0 * rows + 0.3)
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, (method, kept) in enumerate(keep_indices.items()):
        for column, (name, indices) in enumerate(zip(view_names, kept, strict=True)):
            axis = axes[row, column]
            image = images[column] if images is not None else None
            axis.imshow(_lit(kept_mask(indices, num_tokens), image), aspect='auto')
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(name, fontsize=8)
            if column == 0:
                axis.set_ylabel(method)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as err:
        raise ConfigError(f'plot: {path} cannot be written: {err}; name another file') from err


def _lit(
    mask: npt.NDArray[np.float32], image: npt.NDArray[np.uint8] | None
) -> npt.NDArray[np.uint8]:
    """Return the image with dropped patches dimmed, uint8 [height, width, 3]."""
    if image is None:
        image = np.full((*mask.shape, 3), 255, dtype=np.uint8)
    height, width = image.shape[:2]
    y = np.arange(height) * mask.shape[0] // height
    x = np.arange(width) * mask.shape[1] // width
    lit: npt.NDArray[np.uint8] = (image * mask[y][:, x, None]).astype(np.uint8)
    return lit
