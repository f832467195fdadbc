"""Publishes on a camera topic from a node whose name is not UTF-8, until it is killed.

rclpy refuses such a name, so it is changed in the memory of this process before it is announced.
"""

import re
import sys
import time

import rclpy
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

HOSTILE = b'\xff\xfe\x1b[31m\x80_hostile_name_'
HARMLESS = b'harmless_name_instead_'
assert len(HARMLESS) == len(HOSTILE)


def replace_in_memory(old: bytes, new: bytes) -> None:
    pattern = re.compile(re.escape(old))  # first, as `old` itself is replaced on the way
    with open('/proc/self/maps') as maps, open('/proc/self/mem', 'r+b', 0) as memory:
        for line in maps.read().splitlines():
            area = re.match(r'([0-9a-f]+)-([0-9a-f]+) rw', line)
            if area is None or 'stack' in line or 'vvar' in line:
                continue
            start, end = (int(number, 16) for number in area.groups())
            memory.seek(start)
            try:
                content = memory.read(end - start)
            except OSError:
                continue
            for found in pattern.finditer(content):
                memory.seek(start + found.start())
                memory.write(new)


rclpy.init()
other = rclpy.create_node('other')
node = rclpy.create_node(HARMLESS.decode())
node.create_publisher(CompressedImage, sys.argv[1], 10)
replace_in_memory(HARMLESS, HOSTILE)
other.create_publisher(String, '/unused', 10)  # announces all nodes of the process anew
print('ready', flush=True)
time.sleep(600.0)
