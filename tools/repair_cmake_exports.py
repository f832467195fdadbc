"""Replaces paths of the build machine in the CMake files of ROS wheels.

The files name include and site-packages folders of the machine that built the wheels
(`/opt/python/cp3XX-cp3XX/...`). CMake refuses targets with folders that do not exist.
tools/setup.sh runs this script with the Python of the environment. A second run changes nothing.
"""

from __future__ import annotations

from pathlib import Path
import re
import sys
import sysconfig

import numpy

BUILD_INCLUDE = re.compile(r'/opt/python/cp\d+-cp\d+/include/python[\d.]+')
BUILD_NUMPY = re.compile(
    r'/opt/python/cp\d+-cp\d+/lib/python[\d.]+/site-packages/numpy/_?core/include'
)


def main() -> None:
    """Rewrite every CMake file of the environment that names such a folder."""
    include, numpy_include = sysconfig.get_paths()['include'], numpy.get_include()
    for path in Path(sys.prefix, 'share').rglob('*.cmake'):
        text = path.read_text(encoding='utf-8')
        repaired = BUILD_NUMPY.sub(numpy_include, BUILD_INCLUDE.sub(include, text))
        if repaired != text:
            path.write_text(repaired, encoding='utf-8')


if __name__ == '__main__':
    main()
