"""DriveLM's JSON and an image root come in; the camera images of its keyframes come out."""

from __future__ import annotations

from collections.abc import Iterator
import json
from pathlib import Path
import re
from typing import Any

from p2d_node.bags.records import BagImage
from p2d_node.errors import ConfigError
from PIL import Image, UnidentifiedImageError

STAMP_IN_NAME = re.compile(r'__(CAM_\w+)__(\d{16})\.jpg$')
"""nuScenes file names end in camera and capture time in microseconds."""

NS_PER_US = 1000


def read_drivelm_images(json_path: Path, image_root: Path) -> Iterator[BagImage]:
    """Yield the images of all keyframes, by capture time.

    Args:
        json_path: DriveLM v1.1 (scenes with `key_frames`) or its flat list of questions.
        image_root: Folder that holds `samples/<CAMERA>/*.jpg`.

    Raises:
        ConfigError: A file that is missing or not what it should be.
    """
    paths = {resolve_image(name, image_root) for name in _image_names(json_path)}
    for path in sorted(paths, key=stamp_ns_of):
        yield read_image(path, camera=_match(path)[1], stamp_ns=stamp_ns_of(path))


def read_image(
    path: Path, *, camera: str, stamp_ns: int, camera_matrix: tuple[float, ...] | None = None
) -> BagImage:
    """Read one JPEG file; only its header is decoded.

    Raises:
        ConfigError: The file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
        jpeg = path.read_bytes()
    except FileNotFoundError as err:
        raise ConfigError(f'{path}: there is no such image; check --images or --nuscenes') from err
    except (UnidentifiedImageError, OSError) as err:
        raise ConfigError(f'{path}: not a readable image: {err}') from err
    matrix = {} if camera_matrix is None else {'camera_matrix': camera_matrix}
    return BagImage(
        camera=camera, stamp_ns=stamp_ns, jpeg=jpeg, height=height, width=width, **matrix
    )


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ConfigError: Missing, empty or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except OSError as err:
        raise ConfigError(f'{path}: cannot be read: {err.strerror}') from err
    except (ValueError, RecursionError) as err:
        raise ConfigError(f'{path}: not valid JSON: {err}') from err


def _image_names(json_path: Path) -> list[str]:
    data = read_json(json_path)
    try:
        if isinstance(data, dict):
            return [
                str(name)
                for scene in data.values()
                for key_frame in scene['key_frames'].values()
                for name in key_frame['image_paths'].values()
            ]
        return [str(name) for item in data for name in item['image']]
    except (AttributeError, KeyError, TypeError) as err:
        raise ConfigError(
            f'{json_path}: not DriveLM data: {type(err).__name__}: {err}; needed: scenes with '
            'key_frames and image_paths, or a flat list with "image"'
        ) from err


def resolve_image(name: str, image_root: Path) -> Path:
    """Return where an image that DriveLM names lies below `image_root`.

    Raises:
        ConfigError: Not the name of a nuScenes image.
    """
    # The files name images relative to various folders; what follows `samples` is what counts.
    parts = Path(name).parts
    if 'samples' in parts:
        parts = parts[parts.index('samples') :]
    path = image_root.joinpath(*parts)
    if '..' in parts or STAMP_IN_NAME.search(path.name) is None:
        raise ConfigError(f'{name}: not a nuScenes image name (...__<CAMERA>__<microseconds>.jpg)')
    return path


def _match(path: Path) -> re.Match[str]:
    match = STAMP_IN_NAME.search(path.name)
    if match is None:
        raise ConfigError(f'{path}: not a nuScenes image name')
    return match


def stamp_ns_of(path: Path) -> int:
    """Return the capture time in the name of a nuScenes image, nanoseconds since 1970."""
    return int(_match(path)[2]) * NS_PER_US
