"""Transport settings that large images need, for the processes that we start."""

from __future__ import annotations

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory, PackageNotFoundError

FASTDDS_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
"""The variable of Fast DDS 3 (Kilted) and of Fast DDS 2 (Humble, Jazzy)."""

CYCLONE_VARIABLE = 'CYCLONEDDS_URI'


def config_folder() -> Path:
    """Return the folder with presets and profiles: installed, else in the source tree."""
    try:
        return Path(get_package_share_directory('p2d_node')) / 'config'
    except PackageNotFoundError:
        return Path(__file__).resolve().parents[3] / 'config'


def profile_environment() -> dict[str, str]:
    """Return the variables that select our profiles; those that the user has set stay away."""
    folder = config_folder()
    wanted = dict.fromkeys(FASTDDS_VARIABLES, str(folder / 'fastdds.xml'))
    if any(name in os.environ for name in FASTDDS_VARIABLES):
        wanted = {}
    if CYCLONE_VARIABLE not in os.environ:
        wanted[CYCLONE_VARIABLE] = f'file://{folder / "cyclonedds.xml"}'
    return wanted


def use_shipped_profiles() -> None:
    """Set these variables for this process; call it before `rclpy.init`."""
    os.environ.update(profile_environment())
