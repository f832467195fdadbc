"""Tokenised prompts: text segments between pictures, the names of the views, the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from p2d_node.clips import count_frames

NUMBER_WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight')


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt, without its pictures.

    Attributes:
        segments: Per picture the token ids before it, in prompt order.
        suffix: Token ids after the last picture: the question and the start of the answer.
    """

    segments: tuple[tuple[int, ...], ...]
    suffix: tuple[int, ...]


def _view_name(camera: str) -> str:
    """Return e.g. `front left` for `CAM_FRONT_LEFT`."""
    return camera.removeprefix('CAM_').replace('_', ' ').lower()


def describe_views(cameras: Sequence[str]) -> str:
    """Name the views in order; for six views, in the sentence that DriveLM models learn.

    Args:
        cameras: The camera of each picture; in a clip once per frame.
    """
    num_frames = count_frames(cameras)
    lengths = set(num_frames.values())
    names = [
        f'{_view_name(camera)} view'
        + (f' ({count} frames)' if count > 1 and len(lengths) > 1 else '')
        for camera, count in num_frames.items()
    ]
    if len(cameras) == 1:
        return f'This image is the {names[0]} of the ego vehicle.'
    count = NUMBER_WORDS[len(cameras)] if len(cameras) < len(NUMBER_WORDS) else str(len(cameras))
    views = ' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))
    frames = ''
    if max(lengths) > 1:
        number = f'{max(lengths)} frames' if len(lengths) == 1 else 'the frames'
        frames = f'{number}, from old to new, of '
    return f'These {count} images are {frames}the {views} of the ego vehicle.'


def describe_missing_views(cameras: Sequence[str]) -> str:
    """Name the views that are black in a stitched picture."""
    names = ' and '.join(f'the {_view_name(camera)} view' for camera in cameras)
    return f'In this image {names} {"is" if len(cameras) == 1 else "are"} missing.'


def split_at_images(token_ids: Sequence[int], image_token_id: int, num_views: int) -> Prompt:
    """Split a tokenised prompt at its image placeholders.

    Raises:
        ValueError: The number of placeholders is not `num_views`, because the chat template drops
            or repeats pictures.
    """
    segments: list[tuple[int, ...]] = []
    current: list[int] = []
    for token_id in token_ids:
        if token_id == image_token_id:
            segments.append(tuple(current))
            current = []
        else:
            current.append(token_id)
    if len(segments) != num_views:
        raise ValueError(f'{len(segments)} image placeholders for {num_views} views')
    return Prompt(tuple(segments), tuple(current))


def split_opening(
    texts: Sequence[Sequence[int]],
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Split off the longest common beginning of all `texts`, at least one token before each end.

    A single text is not split.

    Returns:
        The common beginning, and the rest of each text.
    """
    length = 0
    if len(texts) > 1:
        shortest = min(len(text) for text in texts)
        while length + 1 < shortest and len({text[length] for text in texts}) == 1:
            length += 1
    return tuple(texts[0][:length]), [tuple(text[length:]) for text in texts]
