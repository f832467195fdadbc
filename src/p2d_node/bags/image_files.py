"""Image files of nuScenes: where they are, what their names say, and their bytes."""

from __future__ import annotations

from pathlib import Path
import re
from typing import Any

from p2d_node.bags.records import BagImage, UNCALIBRATED
from p2d_node.compressed_images import decode_compressed
from p2d_node.config import DEFAULT_MAX_IMAGE_SIDE_PX
from p2d_node.errors import ConfigError, ImageDecodeError
from p2d_node.units import MAX_STAMP_NS, NS_PER_US

IMAGE_NAME = re.compile(r'__(CAM_\w+)__(\d{16})\.jpg$')
"""The end of a file name: camera, and capture stamp in microseconds since the epoch."""


def image_names(images: Any) -> list[str]:
    """Return the names in a field `image`, with slashes: a list, an object or one text.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(images, str):
        images = [images]
    elif isinstance(images, dict):
        images = list(images.values())
    elif not isinstance(images, list):
        raise TypeError(f'image: got {images!r}, allowed: a list of names')
    return [str(name).replace('\\', '/') for name in images]


def resolve_image(name: str, image_root: Path) -> Path:
    """Return the path of an image that a file of DriveLM names.

    Args:
        name: Path with `samples/` in it, relative to any folder.
        image_root: Folder that holds `samples/`.

    Raises:
        ConfigError: Not the name of a nuScenes image.
    """
    # The files name images relative to different folders; only the part from `samples` on counts.
    parts = Path(name).parts
    if 'samples' in parts:
        parts = parts[parts.index('samples') :]
    path = image_root.joinpath(*parts)
    if '..' in parts or IMAGE_NAME.search(path.name) is None:
        raise ConfigError(f'{name}: not a nuScenes image name (...__<CAMERA>__<microseconds>.jpg)')
    return path


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
    camera: str,
    stamp_ns: int,
    camera_matrix: tuple[float, ...] = UNCALIBRATED,
) -> BagImage:
    """Read one JPEG file, and decode it to know that it is whole.

    Args:
        path: The file.
        camera: Name of the camera.
        stamp_ns: Capture stamp, nanoseconds since the epoch.
        camera_matrix: 3x3 intrinsics, row by row.

    Raises:
        ConfigError: The file is missing or not an image.
    """
    try:
        jpeg = path.read_bytes()
        pixels, _ = decode_compressed(camera, 'jpeg', jpeg, max_side_px=DEFAULT_MAX_IMAGE_SIDE_PX)
    except FileNotFoundError as err:
        raise ConfigError(
            f'{path}: there is no such image; check the root folder of the images'
        ) from err
    except (ImageDecodeError, OSError) as err:
        raise ConfigError(f'{path}: not a whole JPEG or PNG file; copy it again') from err
    height, width, _ = pixels.shape
    return BagImage(
        camera=camera,
        stamp_ns=stamp_ns,
        jpeg=jpeg,
        height=height,
        width=width,
        camera_matrix=camera_matrix,
    )
