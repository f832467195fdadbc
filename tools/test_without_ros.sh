#!/usr/bin/env bash
# Runs the tests of the way of a sweep with a Python that has no ROS wheels, such as Humble's: tools/test_without_ros.sh python3.10
# It installs the package and what a vehicle needs into .venv-without-ros. TORCH_INDEX is as in make.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3.10} venv=.venv-without-ros
"$python" --version > /dev/null 2>&1 || { echo "p2d_node: got $python, which does not run; install it" >&2; exit 2; }

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
install --editable '.[test]'
# Left out: what a step allocates depends on the version of torch.
"$venv/bin/python" -m pytest --ignore tests/language_model/test_decode_in_place.py -m "not slow and not ros and not gpu" \
  tests/test_camera_sync.py tests/test_image_decoding.py tests/test_preprocessing.py tests/test_views.py \
  tests/test_pipeline.py tests/test_way_of_a_sweep.py tests/test_whole_folders.py tests/test_durable_files.py \
  tests/token_selection tests/language_model
