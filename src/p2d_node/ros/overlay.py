"""A picture of what the model saw: the views of a sweep, kept patches lit, the rest dimmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
import sys

import cv2
import numpy as np
import numpy.typing as npt
from p2d_node.image_decoding import decode_frame
from p2d_node.records import CameraFrame, DecodedFrame, DrivingAnswer, FrameSet
from p2d_node.views import Views

Pixels = npt.NDArray[np.uint8]

LAYOUT = (
    ('CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT'),
    ('CAM_BACK_LEFT', 'CAM_BACK', 'CAM_BACK_RIGHT'),
)
"""Where the cameras are on the vehicle; other cameras are laid out three in a row."""

VIEW_WIDTH_PX = 480
DIM = 0.30
CAPTION_HEIGHT_PX = 26
FONT = cv2.FONT_HERSHEY_SIMPLEX
MAX_HEIGHT_SHARE = 4
"""A view that is higher than so many times its width is drawn wider than it is."""

Decode = Callable[[CameraFrame], DecodedFrame]

decode_any: Decode = partial(decode_frame, max_pixels=sys.maxsize)
"""Decodes frames of any size."""


def draw_kept_tokens(
    frame_set: FrameSet, answer: DrivingAnswer, views: Views, decode: Decode = decode_any
) -> Pixels:
    """Draw which patches of a sweep the language model saw.

    Args:
        frame_set: The sweep. It is decoded again, so draw only when somebody looks.
        answer: An answer about it, with the kept indices.
        views: Which patch covers which pixel.
        decode: Decodes a frame.

    Returns:
        BGR uint8 [height, width, 3].
    """
    panels = {
        camera: _draw_camera(camera, frames, answer, views, decode)
        for camera, frames in frame_set.clip.items()
    }
    return _tile(panels, _rows(tuple(panels)))


def _draw_camera(
    camera: str,
    clip: Sequence[CameraFrame],
    answer: DrivingAnswer,
    views: Views,
    decode: Decode,
) -> Pixels:
    """Draw the newest frame, and the earlier ones of its clip small below it."""
    stamps = answer.clip_stamps_ns[camera]
    frames = [frame for frame in clip if frame.stamp_ns in stamps]
    kept = answer.kept_per_frame(camera)
    caption = f'{camera}  {answer.tokens_kept[camera]}/{answer.tokens_total[camera]}'
    panel = _caption(_draw_frame(decode(frames[-1]), kept[-1], views, VIEW_WIDTH_PX), caption)
    if len(frames) == 1:
        return panel
    width = VIEW_WIDTH_PX // (len(frames) - 1)
    earlier = zip(frames[:-1], kept, strict=False)
    strip = [_draw_frame(decode(frame), k, views, width) for frame, k in earlier]
    row = np.zeros((max(map(len, strip)), VIEW_WIDTH_PX, 3), np.uint8)
    for place, view in enumerate(strip):
        row[: len(view), place * width : place * width + view.shape[1]] = view
    return np.vstack([panel, row])


def _draw_frame(
    decoded: DecodedFrame, kept: npt.NDArray[np.int64], views: Views, width_px: int
) -> Pixels:
    height, width = decoded.pixels.shape[:2]
    view_height = min(max(1, round(height * width_px / width)), MAX_HEIGHT_SHARE * width_px)
    view = cv2.resize(decoded.pixels, (width_px, view_height), interpolation=cv2.INTER_AREA)
    view = view if decoded.channel_order == 'bgr' else view[..., ::-1]
    lit = np.isin(views.token_map(decoded.camera, view_height, width_px), kept)
    return _light(np.asarray(view, np.uint8), lit)


def _light(view: Pixels, mask: npt.NDArray[np.bool_]) -> Pixels:
    dimmed = (view * DIM).astype(np.uint8)
    return np.where(mask[..., None], view, dimmed)


def _caption(view: Pixels, text: str) -> Pixels:
    bar = np.zeros((CAPTION_HEIGHT_PX, view.shape[1], 3), np.uint8)
    cv2.putText(bar, text, (8, 18), FONT, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return np.vstack([bar, view])


def _rows(cameras: Sequence[str]) -> list[tuple[str, ...]]:
    if set(cameras) <= {name for row in LAYOUT for name in row}:
        return list(LAYOUT)
    return [tuple(cameras[i : i + 3]) for i in range(0, len(cameras), 3)]


def _tile(panels: dict[str, Pixels], rows: Sequence[Sequence[str]]) -> Pixels:
    height = max(panel.shape[0] for panel in panels.values())
    canvas = np.zeros((len(rows) * height, 3 * VIEW_WIDTH_PX, 3), np.uint8)
    for row, names in enumerate(rows):
        for column, name in enumerate(names):
            if name in panels:
                panel = panels[name]
                top, left = row * height, column * VIEW_WIDTH_PX
                canvas[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
    return canvas
