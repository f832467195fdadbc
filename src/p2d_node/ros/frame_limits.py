"""Which camera messages are refused as they arrive, so that none of them is kept."""

from __future__ import annotations

from typing import Any

from p2d_node.compressed_images import max_compressed_bytes
from p2d_node.ros.conversions import is_time
from sensor_msgs.msg import Image

RAW_BYTES_PER_PIXEL = 8
"""The widest encoding that is decoded has 6; rows may be padded."""

MAX_TEXT_CHARACTERS = 256
"""Of `frame_id`, `format` and `encoding`."""


def why_refused(message: Any, max_pixels: int) -> str:
    """Return why a message cannot be used; empty if its size, texts and stamp are allowed.

    Args:
        message: A sensor_msgs Image or CompressedImage.
        max_pixels: Largest height x width.
    """
    is_raw = isinstance(message, Image)
    return why_too_large(len(message.data), max_pixels, raw=is_raw) or why_odd(message)


def why_odd(message: Any) -> str:
    """Return what is wrong with the texts or the stamp of a message; empty if nothing is."""
    is_raw = isinstance(message, Image)
    texts = (message.header.frame_id, message.encoding if is_raw else message.format)
    if (longest := max(map(len, texts))) > MAX_TEXT_CHARACTERS:
        return (
            f'got a frame_id or format of {longest} characters, allowed: {MAX_TEXT_CHARACTERS}; '
            'correct the publisher'
        )
    stamp = message.header.stamp
    if not is_time(stamp):
        return (
            f'got a stamp of {stamp.sec} s and {stamp.nanosec} ns, allowed: 0 or more s and less '
            'than 1e9 ns; correct the publisher'
        )
    return ''


def why_too_large(num_bytes: int, max_pixels: int, *, raw: bool) -> str:
    """Return why a message cannot have `num_bytes`; empty if it can."""
    max_bytes = max_message_bytes(max_pixels, raw=raw)
    if num_bytes <= max_bytes:
        return ''
    return f'got {num_bytes} bytes, allowed: {max_bytes}; for larger images set max_image_pixels'


def max_message_bytes(max_pixels: int, *, raw: bool) -> int:
    """Return the largest size of the data of a message."""
    if raw:
        return RAW_BYTES_PER_PIXEL * max_pixels
    return max_compressed_bytes(max_pixels)
