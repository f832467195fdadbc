"""A keyframe's images come in; the images of the frames before it go out, for its clip.

nuScenes has images between its keyframes: `sweeps/<CAMERA>/` beside `samples/<CAMERA>/`, with the
same form of names. Images belong together if their names begin with the same log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
import os
from pathlib import Path

from p2d_node.bags.image_files import camera_and_stamp_of, IMAGE_NAME
from p2d_node.clips import ClipSettings, find_earlier
from p2d_node.units import NS_PER_US

FOLDERS = ('samples', 'sweeps')

Shots = tuple[Sequence[int], Sequence[str]]
"""Capture stamps, nanoseconds, in order of time, and names below the folder of the images."""


def earlier_images(
    root: Path, names: Mapping[str, str], clip: ClipSettings
) -> list[dict[str, str]]:
    """Return the images of the earlier frames of a keyframe's clip.

    A frame for which some camera has no image, and those before it, are left out.

    Args:
        root: Folder that holds `samples/`, and perhaps `sweeps/`.
        names: Camera to the name of the keyframe's image below `root`.
        clip: What a clip consists of.

    Returns:
        Per frame, oldest first: camera to the name of its image below `root`.
    """
    if clip.num_frames == 1:
        return []
    found: dict[str, list[str]] = {}
    for camera, name in names.items():
        stamps_ns, files = _shots(root, camera).get(log_of(name), ((), ()))
        stamp_ns = camera_and_stamp_of(Path(name))[1]
        found[camera] = [files[place] for place in find_earlier(stamp_ns, stamps_ns, clip)]
    length = min(map(len, found.values()))
    return [
        {camera: images[len(images) - back] for camera, images in found.items()}
        for back in range(length, 0, -1)
    ]


def log_of(name: str) -> str:
    """Return the beginning of an image's name, before its camera."""
    return IMAGE_NAME.split(Path(name).name)[0]


def sweep_name(like: str, camera: str, stamp_ns: int) -> str:
    """Return the name of an image between keyframes.

    Args:
        like: Name of an image of the same log.
        camera: Name of the camera.
        stamp_ns: Capture stamp, nanoseconds.
    """
    return f'sweeps/{camera}/{log_of(like)}__{camera}__{stamp_ns // NS_PER_US:016d}.jpg'


@lru_cache(maxsize=64)
def _shots(root: Path, camera: str) -> Mapping[str, Shots]:
    """Return log to the images of one camera."""
    logs: dict[str, list[tuple[int, str]]] = {}
    for folder in FOLDERS:
        try:
            files = os.listdir(root / folder / camera)
        except OSError:  # there need not be any
            continue
        for file in files:
            match = IMAGE_NAME.search(file)
            if match is not None and match[1] == camera:
                shot = int(match[2]) * NS_PER_US, f'{folder}/{camera}/{file}'
                logs.setdefault(log_of(file), []).append(shot)
    # Sorted once: there may be as many files as a stranger likes.
    return {log: _in_order(shots) for log, shots in logs.items()}


def _in_order(shots: list[tuple[int, str]]) -> Shots:
    shots.sort()
    return [stamp for stamp, _ in shots], [file for _, file in shots]
