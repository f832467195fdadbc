"""Plays a bag from a command: sets the transport profile, and creates and destroys the node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
import time

from p2d_node.bags.reading import BagReader
from p2d_node.ros.dds_profile import use_shipped_profiles
from p2d_node.ros.quiet_node import ToolNode
from p2d_node.ros.rcl_errors import init_rclpy, node_creation_errors
from p2d_node.ros.replay import Replayer, ReplayOptions
import rclpy


@dataclass(frozen=True, slots=True)
class PlaybackResult:
    """What was played.

    Attributes:
        num_published: Messages that were published.
        all_subscribed: False if an image topic had no subscriber before the start.
    """

    num_published: int
    all_subscribed: bool


def play_bag(
    bag: Path, options: ReplayOptions, *, duration_s: float | None = None
) -> PlaybackResult:
    """Play a bag until its end or Ctrl-C.

    Args:
        bag: Folder of the bag.
        options: How it is played.
        duration_s: Longest time to play, in seconds; None: no limit.

    Raises:
        ConfigError: The bag does not exist or is damaged, or ROS refuses the environment
            variables.
    """
    with BagReader(bag) as reader:
        use_shipped_profiles()
        init_rclpy()
        with node_creation_errors():
            node = ToolNode('p2d_replay')
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
