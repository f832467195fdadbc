"""Where files that ship with this package lie: in its source tree, or where it is installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """Return the folder `name` of the source tree, or of the package's share folder.

    Folders above these are not searched: others may be able to write there.
    """
    beside = PACKAGE.parent
    if beside.name == 'src':
        return beside.parent / name
    # `pip install --target` puts both into one folder.
    prefix = PACKAGE.parents[3] if beside.name in {'site-packages', 'dist-packages'} else beside
    return prefix / 'share' / 'p2d_node' / name
