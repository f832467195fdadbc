"""`p2d bench coverage`: how well the kept tokens of a sweep stand for the dropped ones."""

from __future__ import annotations

import argparse
from dataclasses import asdict
import json
from pathlib import Path
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

COVERAGE_EXAMPLE = """examples:
  p2d bench coverage --model p2d-mini --images front.jpg front_left.jpg front_right.jpg back.jpg \\
      back_left.jpg back_right.jpg --plot kept.png
  p2d bench coverage visual_tokens.npy --retention-ratio 0.1
"""


def add_coverage(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add the verb `coverage`."""
    parser = verbs.add_parser(
        'coverage',
        help='how well kept tokens stand for dropped ones, per selection method',
        description='Distance (1 - cosine) of dropped tokens to the nearest kept one.',
        epilog=COVERAGE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'visual_tokens', type=Path, nargs='?', help='.npy, float [views, tokens, hidden]'
    )
    parser.add_argument('--model', help="take the tokens that this model's encoder computes")
    parser.add_argument('--retention-ratio', type=float, default=0.1, help='kept/total')
    parser.add_argument('--plot', type=Path, help='picture of what each method keeps')
    parser.add_argument('--images', type=Path, nargs='+', help='one picture per view')
    parser.add_argument('--json', action='store_true', help='print figures as JSON')
    parser.set_defaults(run=run_coverage)


def run_coverage(args: argparse.Namespace) -> int:
    """Compare the selection methods on one sweep; returns the exit code."""
    from p2d_node.evaluation.coverage import ADAPTIVE, check_plot_path, compare_coverage
    from p2d_node.token_selection import num_keep_from_retention
    from p2d_node.token_selection.factory import SELECTORS

    if args.plot:
        check_plot_path(args.plot)
    tokens, pictures = _tokens_and_pictures(args)
    num_views, num_tokens, _ = tokens.shape
    num_keep = [num_keep_from_retention(num_tokens, args.retention_ratio)] * num_views
    compared = compare_coverage(tokens, num_keep, (*SELECTORS, ADAPTIVE))
    figures = {method: asdict(coverage) for method, (coverage, _) in compared.items()}
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        _print_coverage(figures)
    if args.plot:
        kept = {method: kept for method, (_, kept) in compared.items()}
        _plot(args.plot, kept, tokens, pictures)
    return 0


def _tokens_and_pictures(args: argparse.Namespace) -> tuple[Tensor, list[Any] | None]:
    """Return the tokens of a sweep, and its pictures where there are any."""
    from p2d_node.errors import ConfigError

    if (args.visual_tokens is None) == (args.model is None):
        raise ConfigError('coverage: needed: either a file of visual tokens, or --model')
    pictures = [_load_image(path) for path in args.images or ()]
    if args.model is not None:
        if not pictures:
            raise ConfigError('--images is missing; needed with --model: one picture per view')
        return _encode(args.model, pictures)
    tokens = _load_tokens(args.visual_tokens)
    if pictures and len(pictures) != len(tokens):
        raise ConfigError(f'--images: got {len(pictures)}, allowed: {len(tokens)}, one per view')
    return tokens, pictures or None


def _encode(model: str, pictures: list[Any]) -> tuple[Tensor, list[Any]]:
    """Return the tokens of RGB pictures, and the pictures as the encoder sees them."""
    from p2d_node.checkpoints.checkpoint import open_checkpoint
    from p2d_node.checkpoints.model_folder import model_folder
    from p2d_node.language_model.families.registry import load_vision_module
    from p2d_node.preprocessing import ImageProcessing, normalize, resize_frame
    from p2d_node.records import DecodedFrame
    import torch

    with model_folder(model) as folder, torch.inference_mode():
        processing = ImageProcessing.from_folder(open_checkpoint(folder).folder)
        frames = [DecodedFrame('', 0, picture, 'rgb') for picture in pictures]
        seen = [resize_frame(frame, processing) for frame in frames]
        encoder = load_vision_module(open_checkpoint(folder))
        tokens: Tensor = encoder(normalize(seen, processing, torch.device('cpu')))
    return tokens, seen


def _load_tokens(path: Path) -> Tensor:
    import numpy as np
    from p2d_node.errors import ConfigError
    import torch

    try:
        tokens = torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, EOFError, ValueError, TypeError) as err:
        raise ConfigError(f'{path}: not a readable .npy array of numbers: {err}') from err
    if tokens.dim() != 3 or not tokens.numel() or not torch.is_floating_point(tokens):
        raise ConfigError(
            f'{path}: got {tokens.dtype} {list(tokens.shape)}, '
            'allowed: float [views, tokens, hidden], 1 or more of each'
        )
    return tokens


def _print_coverage(figures: dict[str, dict[str, Any]]) -> None:
    from p2d_node.cli.bench_table import print_figures

    rows = [
        (
            method,
            f'{row["mean_distance"]:.4f}',
            f'{row["worst_distance"]:.4f}',
            ' '.join(str(count) for count in row['num_kept']),
        )
        for method, row in figures.items()
    ]
    print_figures(
        ('method', 'mean', 'worst', 'kept per view'),
        rows,
        title='Distance of dropped tokens to the nearest kept one (1 - cosine)',
    )


def _plot(
    path: Path, kept: dict[str, list[Tensor]], tokens: Tensor, pictures: list[Any] | None
) -> None:
    from p2d_node.evaluation.coverage import plot_kept_tokens
    from p2d_node.records import NUSCENES_CAMERAS

    num_views, num_tokens, _ = tokens.shape
    names = NUSCENES_CAMERAS if num_views == len(NUSCENES_CAMERAS) else range(num_views)
    plot_kept_tokens(
        path, kept, num_tokens, view_names=[str(name) for name in names], images=pictures
    )


def _load_image(path: Path) -> Any:
    import numpy as np
    from p2d_node.errors import ConfigError
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert('RGB'))
    except (OSError, UnidentifiedImageError) as err:
        raise ConfigError(f'{path}: not a readable picture: {err}') from err
