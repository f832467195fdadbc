"""Figures of matplotlib: they are the same wherever they are drawn."""

from __future__ import annotations

import io
import os
from pathlib import Path
import sys
from typing import Any

from p2d_node.durable_files import write_bytes


def new_figure(width_in: float, height_in: float) -> Any:
    """Return an empty figure of matplotlib whose parts make room for each other."""
    if 'matplotlib' not in sys.modules:
        _import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def write_figure(path: Path, figure: Any, dpi: int) -> None:
    """Write a figure as PNG, as `write_bytes` does: its savefig follows links.

    Raises:
        OSError: The file cannot be written.
    """
    png = io.BytesIO()
    figure.savefig(png, format='png', dpi=dpi)
    write_bytes(path, png.getvalue())


def _import_matplotlib() -> None:
    """Import it in /: it reads a file matplotlibrc of the working folder, which may be data."""
    here = os.open('.', os.O_PATH)
    try:
        os.chdir('/')
        import matplotlib as mpl

        mpl.use('Agg')
    finally:
        os.fchdir(here)
        os.close(here)
