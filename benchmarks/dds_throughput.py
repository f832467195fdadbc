"""Counts how many sweeps of six raw camera topics reach the node complete, over real DDS.

    python benchmarks/dds_throughput.py [--seconds 60] [--best-effort] [--json]

Plays a raw 1600x900 bgr8 bag at 12 Hz with `p2d replay` to a drive node with the launch files'
defaults, each in its own process. `--best-effort` is the baseline: a publisher of the same frames
without our transport profile and with sensor-data QoS, as many camera drivers do.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
import json
import os
from pathlib import Path
import platform
import signal
import subprocess
import sys
import tempfile
import time

from p2d_node.bags.writing import write_bag
from p2d_node.ros.dds_profile import config_folder, profile_environment
from p2d_node.ros.spinning import spinning_node
from p2d_sim.generated import generate_images

SWEEPS_IN_BAG = 24
NUM_CAMERAS = 6
DOMAIN = str(1 + os.getpid() % 100)

FOREIGN_PUBLISHER = """
import sys, time, rclpy
from rclpy.qos import qos_profile_sensor_data
from p2d_node.bags.reading import BagReader
from p2d_node.ros.replay import find_message_type
from pathlib import Path

rclpy.init()
node = rclpy.create_node('foreign')
with BagReader(Path(sys.argv[1])) as bag:
    publishers = {
        topic: node.create_publisher(find_message_type(kind), topic, qos_profile_sensor_data)
        for topic, kind in bag.topics.items() if 'image' in topic
    }
    while not all(p.get_subscription_count() for p in publishers.values()):
        time.sleep(0.05)
    time.sleep(2.5)
    end = time.monotonic() + float(sys.argv[2])
    count = 0
    while time.monotonic() < end:
        start = time.monotonic()
        for message in bag.messages():
            if message.topic in publishers and time.monotonic() < end:
                due = start + (message.log_time_ns - bag.start_ns) / 1e9
                time.sleep(max(0.0, due - time.monotonic()))
                publishers[message.topic].publish(bytes(message.data))
                count += 1
print('{"messages": %d}' % (2 * count))
"""


@contextmanager
def drive_node(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run the node with the raw nuScenes preset."""
    preset = config_folder() / 'cameras' / 'nuscenes_raw.yaml'
    command = [sys.executable, '-m', 'p2d_node.ros.drive', '--ros-args']
    with (folder / 'node.log').open('wb') as log:
        process = subprocess.Popen(
            [
                *command,
                '--params-file',
                str(preset),
                '-p',
                'max_new_tokens:=8',
                '-p',
                'model:=untrained',
            ],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(10)


def play(bag: Path, seconds: float, environment: dict[str, str], *, best_effort: bool) -> int:
    """Play `bag` for `seconds`; returns the number of complete sweeps that were published."""
    if best_effort:
        command = [sys.executable, '-c', FOREIGN_PUBLISHER, str(bag), str(seconds)]
    else:
        command = [sys.executable, '-m', 'p2d_node.cli.main', 'replay', '--bag', str(bag)]
        command += ['--loop', '--json', '--wait', '60', '--duration', str(seconds)]
    output = subprocess.run(
        command, env=environment, check=True, capture_output=True, timeout=seconds + 120
    ).stdout
    return int(json.loads(output)['messages']) // (2 * NUM_CAMERAS)


def measure(seconds: float, *, best_effort: bool) -> dict[str, object]:
    """Play, then read the node's own diagnostics."""
    from diagnostic_msgs.msg import DiagnosticArray

    os.environ['ROS_DOMAIN_ID'] = DOMAIN
    latest = {}
    plain = dict(os.environ)
    ours = {**plain, **profile_environment()}
    with tempfile.TemporaryDirectory(prefix='p2d-throughput-') as name:
        folder = Path(name)
        write_bag(generate_images(SWEEPS_IN_BAG), folder / 'bag', encoding='bgr8')
        with drive_node(folder, ours), spinning_node('p2d_throughput') as node:
            node.create_subscription(
                DiagnosticArray,
                '/diagnostics',
                lambda message: latest.update({s.name: s for s in message.status}),
                10,
            )
            environment = plain if best_effort else ours
            published = play(folder / 'bag', seconds, environment, best_effort=best_effort)
            remembered = dict(latest)  # before the diagnostics report that the frames ended
            time.sleep(2.5)
    values = {item.key: item.value for item in latest['/p2d: synchroniser'].values}
    pipeline = {item.key: item.value for item in latest['/p2d: pipeline'].values}
    front = remembered['/p2d: CAM_FRONT']
    complete = int(values['complete'])
    return {
        'machine': f'{os.cpu_count()} cores {platform.machine()}',
        'publisher': 'best-effort, no profile' if best_effort else 'p2d replay',
        'seconds': seconds,
        'sweeps_published': published,
        'sweeps_complete': complete,
        'share_complete': round(complete / published, 4),
        'sweeps_answered': int(pipeline['sweeps answered']),
        'diagnosis_of_front_camera': front.message,
        'synchroniser': values,
    }


def main() -> None:
    """Print the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=60.0, help='how long to play')
    parser.add_argument('--best-effort', action='store_true', help='measure the baseline')
    parser.add_argument('--json', action='store_true', help='print JSON')
    args = parser.parse_args()
    result = measure(args.seconds, best_effort=args.best_effort)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print('\n'.join(f'{key}: {value}' for key, value in result.items()))


if __name__ == '__main__':
    main()
