#!/usr/bin/env bash
# Runs a command in the environment: tools/run.sh VENV SUFFIX COMMAND...
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/$1 suffix=$2
shift 2
export PATH="$venv/bin:$PATH" AMENT_PREFIX_PATH="$venv" CMAKE_PREFIX_PATH="$venv"
set +u
. "$root/ros2_ws/install$suffix/setup.bash"
set -u
exec "$@"
