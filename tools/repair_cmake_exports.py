"""Points the CMake files of ROS wheels at this environment.

The wheels carry the include and site-packages folders of the machine that built them
(`/opt/python/cp3XX-cp3XX/...`); CMake refuses targets with folders that do not exist.
Run by tools/setup.sh with the environment's own Python; running it again changes nothing.
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
    """Rewrite every CMake file below the environment that names a build machine's folder."""
    include, numpy_include = sysconfig.get_paths()['include'], numpy.get_include()
    for path in Path(sys.prefix, 'share').rglob('*.cmake'):
        text = path.read_text(encoding='utf-8')
        repaired = BUILD_NUMPY.sub(numpy_include, BUILD_INCLUDE.sub(include, text))
        if repaired != text:
            path.write_text(repaired, encoding='utf-8')


if __name__ == '__main__':
    main()
