"""Image files of nuScenes: where they are, what their names say, and their bytes."""

from __future__ import annotations

import os
from pathlib import Path
import re
from typing import Any

from p2d_node.bags.records import BagImage, UNCALIBRATED
from p2d_node.compressed_images import decode_compressed
from p2d_node.config import DEFAULT_MAX_IMAGE_PIXELS
from p2d_node.durable_files import MAX_IMAGE_BYTES, read_file
from p2d_node.errors import ConfigError, ImageDecodeError, quote
from p2d_node.units import MAX_STAMP_NS, NS_PER_US

IMAGE_NAME = re.compile(r'__(CAM_\w+)__(\d{16})\.jpg$')
"""The end of a file name: camera, and capture stamp in microseconds since the epoch."""

MAX_NAME_CHARACTERS = 255
"""Of a file, as file systems have it."""

MAX_PATH_CHARACTERS = 1024
"""Of an image in data, where each of thousands of questions may name it."""


def image_names(images: Any) -> list[str]:
    """Return the names in a field `image`, with slashes: a list, an object or one text.

    Raises:
        TypeError: It is none of these.
        ConfigError: A name is too long.
    """
    if isinstance(images, str):
        images = [images]
    elif isinstance(images, dict):
        images = list(images.values())
    elif not isinstance(images, list):
        raise TypeError(f'image: got {quote(images)}, allowed: a list of names')
    names = [str(name).replace('\\', '/') for name in images]
    longest = max(map(len, names), default=0)
    if longest > MAX_PATH_CHARACTERS:
        raise ConfigError(
            f'image: got a name of {longest} characters, allowed: up to {MAX_PATH_CHARACTERS}'
        )
    return names


def sample_name(name: str) -> str:
    """Return the name of an image below the folder that holds `samples/`.

    Args:
        name: As in a file of DriveLM: relative to any folder, so only the part from `samples` on
            counts.

    Raises:
        ConfigError: Not the name of a nuScenes image, or an absolute one without `samples`.
    """
    parts = Path(name).parts
    if 'samples' in parts:
        parts = parts[parts.index('samples') :]
    elif Path(name).is_absolute():
        raise ConfigError(
            f'{quote(name)}: leads out of the folder of the images, allowed: files in this '
            'folder, as samples/<CAMERA>/...'
        )
    fits = bool(parts) and '..' not in parts and len(parts[-1]) <= MAX_NAME_CHARACTERS
    if not fits or IMAGE_NAME.search(parts[-1]) is None:
        raise ConfigError(
            f'{quote(name)}: not a nuScenes image name (...__<CAMERA>__<microseconds>.jpg)'
        )
    return str(Path(*parts))


def file_below(root: Path, name: str) -> Path:
    """Return the path of a file that a data file names; the file may be missing.

    Args:
        root: Folder that the user named; it may be a symbolic link.
        name: Relative to `root`.

    Raises:
        ConfigError: The name leads out of the folder, by itself or through a symbolic link, or to
            something else than a file.
    """
    if len(name) > MAX_PATH_CHARACTERS:  # resolving one takes time by the square of its length
        raise ConfigError(
            f'{quote(name)}: got a file name of {len(name)} characters, allowed: up to '
            f'{MAX_PATH_CHARACTERS}; copy the data again'
        )
    path = root / name
    try:
        place = os.path.realpath(path)
    except (OSError, ValueError) as err:
        raise ConfigError(f'{quote(name)}: not a file name: {err}; copy the data again') from err
    if not Path(place).is_relative_to(os.path.realpath(root)):
        raise ConfigError(
            f'{quote(name)}: leads out of {root} to {quote(place)}, allowed: files in this '
            'folder; if a symbolic link of yours leads there, name the real folder'
        )
    if os.path.exists(place) and not os.path.isfile(place):
        raise ConfigError(f'{quote(str(path))}: not a file; name the folder of the images')
    return path


def write_below(root: Path, name: str, content: bytes) -> None:
    """Write a new file that a data file names, and the folders above it; see `file_below`.

    Raises:
        ConfigError: The name leads out of the folder.
        OSError: The file exists, also as a link, or cannot be written.
    """
    path = file_below(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('xb') as file:
        file.write(content)


def resolve_image(name: str, image_root: Path) -> Path:
    """Return the path of an image that a file of DriveLM names; see `file_below`."""
    return file_below(image_root, sample_name(name))


class FilesOnce:
    """Notes the files of a data set, each of which may have one name.

    Else data of kilobytes could name one image, through links, until the disk is full.
    """

    def __init__(self) -> None:
        """Begin without files."""
        self._found: set[tuple[int, int]] = set()

    def add(self, path: Path, name: str) -> None:
        """Note a file; one that is missing is left to the caller.

        Raises:
            ConfigError: The file has another name.
        """
        if not path.exists():
            return
        status = path.stat()
        place = status.st_dev, status.st_ino
        if place in self._found:
            raise ConfigError(
                f'{quote(name)}: the file of another image, allowed: one name for each file; '
                'remove the links'
            )
        self._found.add(place)


def camera_and_stamp_of(path: Path) -> tuple[str, int]:
    """Return camera and capture stamp in the name of a nuScenes image.

    Returns:
        Name of the camera, and nanoseconds since the epoch.

    Raises:
        ConfigError: Not the name of a nuScenes image.
    """
    match = IMAGE_NAME.search(path.name)
    if match is None:
        raise ConfigError(f'{path}: not a nuScenes image name')
    stamp_ns = int(match[2]) * NS_PER_US
    if stamp_ns > MAX_STAMP_NS:
        raise ConfigError(
            f'{path}: got the capture time {match[2]} us, allowed: up to the year 2038, which is '
            'the end of ROS time'
        )
    return match[1], stamp_ns


def stamp_ns_of(path: Path) -> int:
    """Return the capture stamp in the name of a nuScenes image, nanoseconds since the epoch.

    Raises:
        ConfigError: Not the name of a nuScenes image.
    """
    return camera_and_stamp_of(path)[1]


def read_image(
    path: Path,
    *,
    root: Path,
    camera: str,
    stamp_ns: int,
    camera_matrix: tuple[float, ...] = UNCALIBRATED,
) -> BagImage:
    """Read one JPEG file below `root`; see `file_below` and `to_bag_image`.

    Raises:
        ConfigError: The file is missing or not an image.
    """
    try:
        jpeg = read_file(path, MAX_IMAGE_BYTES, may_be_sparse=False, below=root)
    except FileNotFoundError as err:
        raise ConfigError(
            f'{path}: there is no such image; check the root folder of the images'
        ) from err
    except OSError as err:
        raise ConfigError(f'{path} cannot be read: {err.strerror}; copy it again') from err
    return to_bag_image(
        jpeg, str(path), camera=camera, stamp_ns=stamp_ns, camera_matrix=camera_matrix
    )


def to_bag_image(
    jpeg: bytes,
    source: str,
    *,
    camera: str,
    stamp_ns: int,
    camera_matrix: tuple[float, ...] = UNCALIBRATED,
) -> BagImage:
    """Make the record of a JPEG file, and decode it to know that it is whole.

    Args:
        jpeg: Content of the file.
        source: Where it comes from, for messages.
        camera: Name of the camera.
        stamp_ns: Capture stamp, nanoseconds since the epoch.
        camera_matrix: 3x3 intrinsics, row by row.

    Raises:
        ConfigError: It is not an image.
    """
    try:
        pixels, _ = decode_compressed(camera, 'jpeg', jpeg, max_pixels=DEFAULT_MAX_IMAGE_PIXELS)
    except ImageDecodeError as err:
        reason = err.broken[camera].partition(';')[0]  # what follows is about cameras
        raise ConfigError(
            f'{source}: not an image that can be used: {reason}; copy it again'
        ) from err
    height, width, _ = pixels.shape
    return BagImage(
        camera=camera,
        stamp_ns=stamp_ns,
        jpeg=jpeg,
        height=height,
        width=width,
        camera_matrix=camera_matrix,
    )
