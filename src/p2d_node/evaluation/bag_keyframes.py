"""A bag and questions come in; the images that the questions name go out, as files."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
import tempfile
from typing import Any

import cv2
from p2d_node.bags.camera_images import CameraMessage, IMAGE_TYPES, read_camera_messages
from p2d_node.bags.image_files import camera_and_stamp_of, sample_name, write_below
from p2d_node.bags.limits import check_bytes, max_image_bytes
from p2d_node.bags.reading import BagReader
from p2d_node.clips import ClipSettings, find_earlier, NO_CLIP
from p2d_node.durable_files import write_faults
from p2d_node.errors import ConfigError, ImageDecodeError
from p2d_node.evaluation.clip_images import log_of, sweep_name
from p2d_node.image_decoding import decode_frame
from p2d_node.records import CameraFrame
from p2d_node.units import NS_PER_US

FILE_FORMATS = ('jpeg', 'jpg', 'png')
"""Formats of a CompressedImage whose bytes are an image file with colours in the usual order."""

Place = tuple[str, int]
"""Camera, and capture stamp in nanoseconds since the epoch."""


@contextmanager
def keyframes_of_bag(
    bag: Path, questions: Sequence[Any], clip: ClipSettings = NO_CLIP
) -> Iterator[tuple[Path, list[Any]]]:
    """Write the images that the questions name to a folder, which exists during the body.

    Args:
        bag: A rosbag2, or a file of nuscenes2mcap, with true capture stamps.
        questions: Each a `SweepQuestion`.
        clip: Images that their clips need are written too.

    Yields:
        The folder, which holds `samples/` and `sweeps/`, and the questions whose images the bag
        has.

    Raises:
        ConfigError: The bag cannot be read, or has all images of no question.
    """
    with tempfile.TemporaryDirectory(prefix='p2d-images-') as folder:
        found = _write_images(bag, _Names(questions, clip), clip, Path(folder))
        # Thousands of questions may be about one keyframe, and share its images.
        images = {id(q.images): q.images for q in questions}
        complete = {key for key, names in images.items() if _places_of(names) <= found}
        there = [q for q in questions if id(q.images) in complete]
        if not there:
            raise ConfigError(
                f'bag: {bag} has all images of none of the {len(questions)} questions, needed: '
                'images with the capture stamps of nuScenes, of the scenes of --data'
            )
        yield Path(folder), there


def _places_of(images: Mapping[str, str]) -> set[Place]:
    return {camera_and_stamp_of(Path(sample_name(name))) for name in images.values()}


class _Names:
    """The names of the images that questions and their clips need."""

    def __init__(self, questions: Sequence[Any], clip: ClipSettings) -> None:
        names = {name for question in questions for name in question.images.values()}
        in_samples = map(sample_name, names)
        self._keyframes = {camera_and_stamp_of(Path(name)): name for name in in_samples}
        self._clip = clip
        self._stamps_ns: dict[str, list[int]] = {}
        for camera, stamp_ns in sorted(self._keyframes):
            self._stamps_ns.setdefault(camera, []).append(stamp_ns)
        self._sweeps: dict[Place, str] = {}

    def choose_sweeps(self, places: Iterable[Place]) -> None:
        """Choose the images that clips need, so that only these are written.

        Args:
            places: Of all images of the bag.
        """
        stamps_us: dict[tuple[str, str], array[int]] = {}
        for camera, stamp_ns in places:
            if like := self._keyframe_after(camera, stamp_ns):
                # Microseconds, as the names of files have them.
                of_log = stamps_us.setdefault((log_of(like), camera), array('q'))
                of_log.append(stamp_ns // NS_PER_US)
        in_order = {
            key: [stamp_us * NS_PER_US for stamp_us in sorted(set(of_log))]
            for key, of_log in stamps_us.items()
        }
        for (camera, stamp_ns), like in self._keyframes.items():
            there_ns = in_order.get((log_of(like), camera), [])
            for number in find_earlier(stamp_ns, there_ns, self._clip):
                place = camera, there_ns[number]
                if place not in self._keyframes:
                    self._sweeps[place] = sweep_name(like, *place)

    def of(self, place: Place) -> str:
        """Return the file name of an image; empty if no question needs it."""
        if name := self._keyframes.get(place):
            return name
        camera, stamp_ns = place
        return self._sweeps.get((camera, stamp_ns // NS_PER_US * NS_PER_US), '')

    def _keyframe_after(self, camera: str, stamp_ns: int) -> str:
        """Return the name of the keyframe whose clip may reach an image; empty for none."""
        keyframes_ns = self._stamps_ns.get(camera, [])
        after = bisect_left(keyframes_ns, stamp_ns)
        if after == len(keyframes_ns) or keyframes_ns[after] - stamp_ns > self._clip.reach_ns:
            return ''
        return self._keyframes[camera, keyframes_ns[after]]


def _write_images(bag: Path, names: _Names, clip: ClipSettings, folder: Path) -> set[Place]:
    """Write the images that are in the bag; return their places."""
    if clip.num_frames > 1:
        with BagReader(bag) as reader:
            messages = read_camera_messages(reader, IMAGE_TYPES)
            names.choose_sweeps((item.camera, item.stamp_ns) for item in messages)
    found: dict[str, Place] = {}
    num_bytes = 0
    with BagReader(bag) as reader:
        with reader.faults():
            max_bytes = max_image_bytes(bag, folder)
        for item in read_camera_messages(reader, IMAGE_TYPES):
            place = item.camera, item.stamp_ns
            name = names.of(place)
            if not name or name in found:
                continue
            with reader.faults():
                content = _to_file(item)
                num_bytes += len(content)
                check_bytes('images', num_bytes, max_bytes)
            with write_faults(f'bag: {folder / name}', 'free some space, or set TMPDIR'):
                write_below(folder, name, content)
            found[name] = place
    return set(found.values())


def _to_file(item: CameraMessage) -> bytes:
    """Return an image as the bytes of a JPEG or PNG file of the same pixels.

    Raises:
        ValueError: It is not an image that can be used.
    """
    try:
        frame = decode_frame(CameraFrame(item.camera, item.stamp_ns, item.message))
    except ImageDecodeError as err:
        raise ValueError(f'{item.stamp_ns} ns: {err}') from err
    if getattr(item.message, 'format', '') in FILE_FORMATS:
        return bytes(item.message.data)
    pixels = frame.pixels if frame.channel_order == 'bgr' else frame.pixels[..., ::-1]
    _, content = cv2.imencode('.png', pixels)
    return content.tobytes()
