#!/usr/bin/env bash
# Creates the environment VENV from the lock of ROS_DISTRO and builds ros2_ws in it.
# Usage: tools/setup.sh ROS_DISTRO VENV SUFFIX. It does nothing if nothing has changed.
# TORCH_INDEX is the package index that torch comes from, if not PyPI.
# Every package must have a hash of the lock, except torch and CUDA's libraries: their files differ between indexes.
set -euo pipefail
cd "$(dirname "$0")/.."
distro=$1 venv=$2 suffix=$3

fail() { echo "p2d_node: $*" >&2; exit 1; }

# pip would compile 19,000 modules on one core; `compile_modules` uses all.
pip_install() {
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --progress-bar off --no-compile "$@"
}

# Some files of packages are no Python 3, and are never imported: that they do not compile is no error.
compile_modules() { "$venv/bin/python" -m compileall -qq -j 0 "$venv/lib" || true; }

# Some packages come as source. Without isolation they are built with the setuptools of the lock, which is installed first.
install_locked() { pip_install --no-deps --require-hashes --no-build-isolation --requirement "$1"; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.11 python3.12}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
        > /dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  local name=${PYTHON:-python3} version
  if version=$("$name" --version 2> /dev/null); then :
  elif command -v "$name" > /dev/null; then
    version="$(command -v "$name"), a shim without a Python behind it"
  else
    version="no $name"
  fi
  fail "got ${version}, needed: Python 3.11 or 3.12 with venv (there are no ROS wheels for others); \
install one and name it: make ... PYTHON=python3.11"
}

lock="requirements/lock-${distro}.txt"
[ -f "$lock" ] || fail "got ROS_DISTRO=${distro}, allowed: \
$(ls requirements | sed -n 's/^lock-\(.*\)\.txt$/\1/p' | paste -sd ' ')"
for tool in gcc g++ make; do
  command -v "$tool" > /dev/null || fail "$tool is missing; install it: apt-get install build-essential"
done
python=$(find_python)

torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements/base.txt)
stamp=$({ cat "$lock" tools/setup.sh tools/repair_cmake_exports.py; echo "$torch"; } | sha256sum)
if [ "$(cat "$venv/.p2d-requirements" 2> /dev/null)" != "$stamp" ]; then
  echo "p2d_node: creating $venv with ROS 2 $distro (a few minutes)"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  install_locked <(awk '/^[a-z]/ { wanted = /^setuptools==/ } wanted' "$lock") && install_locked "$lock" ||
    fail "the packages of $lock could not be installed; the lines above say why"
  pip_install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch" ||
    fail "$torch could not be installed from ${TORCH_INDEX:-PyPI}; the lines above say why"
  "$venv/bin/python" tools/repair_cmake_exports.py
  pip_install --no-deps --no-build-isolation --editable .
  compile_modules
  echo "$stamp" > "$venv/.p2d-requirements"
fi

# Python sources are linked, not copied: only messages, data files and entry points need a build.
stamp=$(
  { cat setup.py setup.cfg package.xml "$venv/.p2d-requirements"; find launch config models resource -type f | sort
    find ros2_ws/src/p2d_msgs -type f -exec cat {} +
    cat ros2_ws/src/p2d_sim/setup.py ros2_ws/src/p2d_sim/setup.cfg ros2_ws/src/p2d_sim/package.xml ; } | sha256sum
)
if [ "$(cat "ros2_ws/install$suffix/.p2d-build" 2> /dev/null)" != "$stamp" ]; then
  echo "p2d_node: building ros2_ws"
  prefix=$(cd "$venv" && pwd)
  (
    cd ros2_ws
    export PATH="$prefix/bin:$PATH" AMENT_PREFIX_PATH="$prefix" CMAKE_PREFIX_PATH="$prefix"
    log=$(mktemp)
    colcon --log-base "log$suffix" build --symlink-install \
      --build-base "build$suffix" --install-base "install$suffix" \
      --event-handlers console_direct- --cmake-args "-DPython3_EXECUTABLE=$prefix/bin/python" \
      > "$log" 2>&1 || { cat "$log" >&2; exit 1; }
    rm -f "$log"
  ) || fail "ros2_ws did not build; the messages above say why"
  echo "$stamp" > "ros2_ws/install$suffix/.p2d-build"
fi
