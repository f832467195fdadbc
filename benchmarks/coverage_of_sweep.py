r"""How close the dropped tokens of one sweep are to the kept ones, per selection method.

python benchmarks/coverage_of_sweep.py --model p2d-mini --plot kept.png \
        --images front.jpg front_left.jpg front_right.jpg back.jpg back_left.jpg back_right.jpg
python benchmarks/coverage_of_sweep.py visual_tokens.npy --retention-ratio 0.1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
import json
from pathlib import Path
import sys
from typing import Any

from p2d_node.library_settings import prepare_libraries

prepare_libraries()

import numpy as np
import numpy.typing as npt
from p2d_node.benchmarks.selection import ADAPTIVE
from p2d_node.checkpoints.checkpoint import open_checkpoint
from p2d_node.checkpoints.model_folder import model_folder
from p2d_node.cli.bench_table import print_figures
from p2d_node.errors import ConfigError, P2dError
from p2d_node.language_model.families.registry import load_vision_module
from p2d_node.preprocessing import ImageProcessing, normalize, resize_frame
from p2d_node.records import DecodedFrame, NUSCENES_CAMERAS
from p2d_node.token_selection import num_keep_from_retention
from p2d_node.token_selection.factory import SELECTORS
from PIL import Image, UnidentifiedImageError
from token_coverage import check_plot_path, compare_coverage, plot_kept_tokens
import torch
from torch import Tensor

EXIT_BAD_INPUT = 2

Pictures = list[npt.NDArray[np.uint8]]
"""RGB uint8 [height, width, 3] per view."""


def main(words: Sequence[str] | None = None) -> int:
    """Compare the selection methods on one sweep; returns the exit code."""
    args = _parser().parse_args(words)
    try:
        run(args)
    except P2dError as err:
        print(f'coverage_of_sweep: {err}', file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'visual_tokens', type=Path, nargs='?', help='.npy, float [views, tokens, hidden]'
    )
    parser.add_argument('--model', help='compute the tokens with the encoder of this model')
    parser.add_argument('--images', type=Path, nargs='+', help='one image file per view')
    parser.add_argument('--retention-ratio', type=float, default=0.1, help='kept/total')
    parser.add_argument('--plot', type=Path, help='image file: what each method keeps')
    parser.add_argument('--json', action='store_true', help='print figures as JSON')
    return parser


def run(args: argparse.Namespace) -> None:
    """Measure, print and plot.

    Raises:
        ConfigError: Bad input.
    """
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
        _print_figures(figures)
    if args.plot:
        kept = {method: kept for method, (_, kept) in compared.items()}
        names = NUSCENES_CAMERAS if num_views == len(NUSCENES_CAMERAS) else range(num_views)
        view_names = [str(name) for name in names]
        plot_kept_tokens(args.plot, kept, num_tokens, view_names=view_names, images=pictures)


def _tokens_and_pictures(args: argparse.Namespace) -> tuple[Tensor, Pictures | None]:
    """Return the visual tokens of the sweep, and its images where they are given."""
    if (args.visual_tokens is None) == (args.model is None):
        raise ConfigError('needed: either a file of visual tokens, or --model')
    pictures = [_load_image(path) for path in args.images or ()]
    if args.model is not None:
        if not pictures:
            raise ConfigError('--images is missing; needed with --model: one image per view')
        return _encode(args.model, pictures)
    tokens = _load_tokens(args.visual_tokens)
    if pictures and len(pictures) != len(tokens):
        raise ConfigError(f'--images: got {len(pictures)}, allowed: {len(tokens)}, one per view')
    return tokens, pictures or None


@torch.inference_mode()
def _encode(model: str, pictures: Pictures) -> tuple[Tensor, Pictures]:
    """Return the visual tokens of images, and the images as resized for the encoder."""
    with model_folder(model) as folder:
        checkpoint = open_checkpoint(folder)
        processing = ImageProcessing.from_folder(checkpoint.folder)
        frames = [DecodedFrame('', 0, picture, 'rgb') for picture in pictures]
        resized = [resize_frame(frame, processing) for frame in frames]
        encoder = load_vision_module(checkpoint)
        tokens: Tensor = encoder(normalize(resized, processing, torch.device('cpu')))
    return tokens, resized


def _load_tokens(path: Path) -> Tensor:
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


def _load_image(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert('RGB'))
    except (OSError, UnidentifiedImageError) as err:
        raise ConfigError(f'{path}: not a readable image: {err}') from err


def _print_figures(figures: dict[str, dict[str, Any]]) -> None:
    rows = [
        (
            method,
            f'{row["worst_distance"]:.4f}',
            f'{row["mean_distance"]:.4f}',
            ' '.join(str(count) for count in row['num_kept']),
        )
        for method, row in figures.items()
    ]
    print_figures(
        ('method', 'worst', 'mean', 'kept per view'),
        rows,
        title='Distance of dropped tokens to the nearest kept one (1 - cosine)',
    )


if __name__ == '__main__':
    sys.exit(main())
