"""Where files that ship with this package lie: in its source tree, or where it is installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """Return the folder `name` of the source tree, or of the package's share folder.

    Folders above these are not searched: others may be able to write there.
    """
    if PACKAGE.parent.name in {'site-packages', 'dist-packages'}:
        return PACKAGE.parents[3] / 'share' / 'p2d_node' / name
    return PACKAGE.parents[1] / name
