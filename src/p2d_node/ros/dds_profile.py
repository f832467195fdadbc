"""Environment variables for DDS: the shipped profiles, which large images need, and its reach."""

from __future__ import annotations

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory, PackageNotFoundError
from ament_index_python.search_paths import get_search_paths

FASTDDS_3_VARIABLE = 'FASTDDS_DEFAULT_PROFILES_FILE'
FASTDDS_2_VARIABLE = 'FASTRTPS_DEFAULT_PROFILES_FILE'

CYCLONE_VARIABLE = 'CYCLONEDDS_URI'

DISCOVERIES = ('localhost', 'subnet')


def config_folder() -> Path:
    """Return the folder of presets and profiles: the installed one, or that of the source tree."""
    try:
        return Path(get_package_share_directory('p2d_node')) / 'config'
    except PackageNotFoundError:
        return Path(__file__).resolve().parents[3] / 'config'


def fastdds_variable() -> str:
    """Return the variable of the installed Fast DDS: version 3 from Kilted on, 2 before."""
    installed = any((Path(path) / 'share' / 'fastdds').is_dir() for path in get_search_paths())
    return FASTDDS_3_VARIABLE if installed else FASTDDS_2_VARIABLE


def profile_environment() -> dict[str, str]:
    """Return the variables that select the profiles, without those that the user has set."""
    folder = config_folder()
    wanted = {}
    if FASTDDS_3_VARIABLE not in os.environ and FASTDDS_2_VARIABLE not in os.environ:
        wanted[fastdds_variable()] = str(folder / 'fastdds.xml')
    if CYCLONE_VARIABLE not in os.environ:
        wanted[CYCLONE_VARIABLE] = f'file://{folder / "cyclonedds.xml"}'
    return wanted


def discovery_environment(discovery: str) -> dict[str, str]:
    """Return the variables that choose which machines DDS discovers.

    Args:
        discovery: One of `DISCOVERIES`; empty: what the environment says.
    """
    if not discovery:
        return {}
    if os.environ.get('ROS_DISTRO') == 'humble':
        return {'ROS_LOCALHOST_ONLY': '1' if discovery == 'localhost' else '0'}
    return {'ROS_AUTOMATIC_DISCOVERY_RANGE': discovery.upper()}


def use_shipped_profiles() -> None:
    """Set the variables of `profile_environment` for this process, before `rclpy.init`."""
    os.environ.update(profile_environment())
