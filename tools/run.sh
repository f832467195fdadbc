#!/usr/bin/env bash
# Runs a command in the environment: tools/run.sh VENV SUFFIX COMMAND...
set -euo pipefail
if [ $# -lt 3 ] || [ ! -d "$(dirname "$0")/../$1" ]; then
  echo "usage: tools/run.sh VENV SUFFIX COMMAND..., for example: tools/run.sh .venv \"\" p2d --help" >&2
  echo "VENV is the folder that make setup creates; SUFFIX is \"\", or \"-jazzy\" for .venv-jazzy" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/$1 suffix=$2
shift 2
export PATH="$venv/bin:$PATH" AMENT_PREFIX_PATH="$venv" CMAKE_PREFIX_PATH="$venv"
# colcon puts its folders before what is there; before nothing it leaves an empty name, which is the
# working folder: a library that lies there would be loaded.
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-$venv/lib}"
set +u
. "$root/ros2_ws/install$suffix/setup.bash"
set -u
exec "$@"
