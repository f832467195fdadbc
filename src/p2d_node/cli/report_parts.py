"""Parts that the reports of several verbs share: machine, latency, tokens per view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import platform

import cv2
import numpy as np
import numpy.typing as npt
from p2d_node import __version__
from p2d_node.benchmarks.measuring import processor_name
from p2d_node.compressed_images import decode_compressed
from p2d_node.config import DEFAULT_MAX_IMAGE_PIXELS
from p2d_node.latency import LATENCY_TREE, percentile_field, PERCENTILES, percentiles_of
from p2d_node.reports.parts import Bar, Chart, Section, Table
import torch

NUM_ANSWERS_SHOWN = 200
STORY_SIDE_PX = 480
JPEG_QUALITY = 80


def machine_section(facts: Sequence[tuple[str, str]]) -> Section:
    """Return what ran where: `facts` of the run, then the machine and the versions."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'
    machine = [
        ('processor', processor_name()),
        ('GPU', gpu),
        ('p2d_node', __version__),
        ('torch', torch.__version__),
        ('Python', platform.python_version()),
    ]
    return Section('What ran where', [Table(('', ''), [*facts, *machine])])


def latency_chart(sweeps: Sequence[Mapping[str, float]]) -> Chart:
    """Return the latency tree with percentiles over sweeps.

    Args:
        sweeps: Field of the tree to milliseconds; one or more.
    """
    percentiles = percentiles_of(sweeps, [name for _, name, _ in LATENCY_TREE])
    suffixes = tuple(PERCENTILES)
    longest = max(*(percentiles[percentile_field(n, 'p95')] for _, n, _ in LATENCY_TREE), 1e-9)
    bars = []
    for depth, name, meaning in LATENCY_TREE:
        values = [percentiles[percentile_field(name, suffix)] for suffix in suffixes]
        bars.append(
            Bar(
                label=name.removesuffix('_ms').replace('_', ' '),
                values=[f'{value:.1f}' for value in values],
                share=min(1.0, max(0.0, values[0] / longest)),
                depth=depth,
                title=meaning,
            )
        )
    return Chart(('ms', *suffixes), bars)


def tokens_chart(kept: Mapping[str, float], total: Mapping[str, float]) -> Chart:
    """Return the kept tokens of each camera; `kept` and `total` are numbers of tokens."""
    bars = []
    for camera, number in kept.items():
        share = number / total[camera]
        values = [f'{number:g}', f'{total[camera]:g}', f'{share:.1%}']
        bars.append(Bar(label=camera, values=values, share=share))
    return Chart(('camera', 'kept', 'of', 'share'), bars)


def ratios_chart(ratios: Mapping[str, float]) -> Chart:
    """Return the retention ratio of each camera."""
    bars = [Bar(label=name, values=[f'{r:.1%}'], share=r) for name, r in ratios.items()]
    return Chart(('camera', 'kept'), bars)


def to_jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return BGR pixels, uint8 [height, width, 3], as JPEG."""
    _, data = cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.tobytes()


def small_jpeg(
    image: bytes, camera: str = '', max_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
) -> bytes:
    """Return a JPEG or PNG file as a JPEG of the size that a story needs.

    Raises:
        ImageDecodeError: It is no image that the camera may have.
    """
    pixels, _ = decode_compressed(camera, 'jpeg', image, max_pixels=max_pixels)
    height, width = pixels.shape[:2]
    scale = STORY_SIDE_PX / max(height, width)  # of the longer side: the other may be one pixel
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return to_jpeg(np.asarray(resized, np.uint8))
