"""DriveLM's JSON and an image root come in; the camera images of its keyframes go out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from p2d_node.bags.image_files import (
    camera_and_stamp_of,
    FilesOnce,
    image_names,
    read_image,
    resolve_image,
    stamp_ns_of,
)
from p2d_node.bags.records import BagImage
from p2d_node.durable_files import read_data
from p2d_node.errors import format_faults

NEEDED = 'needed: scenes with key_frames and image_paths, or a flat list with "image"'


def read_drivelm_images(json_path: Path, image_root: Path) -> Iterator[BagImage]:
    """Yield the images of all keyframes in the order of their capture stamps.

    Args:
        json_path: DriveLM v1.1 (scenes with `key_frames`) or its flat list of questions.
        image_root: Folder that holds `samples/<CAMERA>/*.jpg`.

    Raises:
        ConfigError: A file is missing, or not in the format of DriveLM.
    """
    paths = {resolve_image(name, image_root) for name in _image_names(json_path)}
    files = FilesOnce()
    for path in sorted(paths, key=stamp_ns_of):
        files.add(path, str(path.relative_to(image_root)))
        camera, stamp_ns = camera_and_stamp_of(path)
        yield read_image(path, root=image_root, camera=camera, stamp_ns=stamp_ns)


def _image_names(json_path: Path) -> list[str]:
    data = read_data(json_path, parameter='drivelm', next_step='name the file of questions')
    with format_faults(json_path, 'DriveLM data', NEEDED):
        if isinstance(data, dict):
            key_frames = [k for scene in data.values() for k in scene['key_frames'].values()]
            fields = [key_frame['image_paths'] for key_frame in key_frames]
        else:
            fields = [item['image'] for item in data]
        return [name for field in fields for name in image_names(field)]
