"""Plays a rosbag2 over DDS where there is no `ros2 bag`."""

from __future__ import annotations

import json

from p2d_node.cli.screen import say
from p2d_node.cli.verbs.bags import ReplayOptions
from p2d_node.ros.playback import play_bag
from p2d_node.ros.replay import ReplayOptions as PlaybackOptions


def run(options: ReplayOptions) -> int:
    """Play until the end, Ctrl-C, or `--duration`; returns the exit code."""
    playback = PlaybackOptions(
        rate=options.rate, loop=options.loop, clock=options.clock, wait_s=options.wait_s
    )
    result = play_bag(options.bag, playback, duration_s=options.duration_s)
    if not result.all_subscribed:
        say('p2d replay: not every image topic has a subscriber', error=True)
    if options.json:
        print(json.dumps({'bag': str(options.bag), 'messages': result.num_published}))
    else:
        say(f'{options.bag}: {result.num_published} messages published')
    return 0
