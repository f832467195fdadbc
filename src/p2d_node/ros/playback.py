"""Runs a `Replayer` as a process of its own: node, signals, transport profile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
import time

from p2d_node.bags.reading import BagReader
from p2d_node.ros.dds_profile import use_shipped_profiles
from p2d_node.ros.replay import Replayer, ReplayOptions
import rclpy


@dataclass(frozen=True, slots=True)
class PlaybackResult:
    """What was played; `all_subscribed` is False where an image topic had no subscriber."""

    num_published: int
    all_subscribed: bool


def play_bag(
    bag: Path, options: ReplayOptions, *, duration_s: float | None = None
) -> PlaybackResult:
    """Play `bag` until its end, Ctrl-C, or `duration_s` after the start.

    Raises:
        ConfigError: No such bag, or a damaged one.
    """
    with BagReader(bag) as reader:
        use_shipped_profiles()
        rclpy.init()
        node = rclpy.create_node('p2d_replay')
        try:
            replayer = Replayer(node, reader, options)
            all_subscribed = replayer.wait_for_subscribers(lambda: not rclpy.ok())
            end_s = None if duration_s is None else time.monotonic() + duration_s
            replayer.play(
                lambda: not rclpy.ok() or (end_s is not None and time.monotonic() >= end_s)
            )
        finally:
            node.destroy_node()
            rclpy.try_shutdown()
    return PlaybackResult(replayer.num_published, all_subscribed)
