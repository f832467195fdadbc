#!/usr/bin/env bash
# Runs everything that needs a GPU and writes one JSON into benchmarks/results/. Takes under 8
# minutes on a machine with one NVIDIA GPU, PyTorch, Triton and transformers; no ROS, no network.
#
#   benchmarks/gpu.sh [--python PYTHON] [--output FILE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=python3
if [[ "${1:-}" == --python ]]; then
  python=$2
  shift 2
fi
PYTHONPATH=src exec "$python" benchmarks/gpu_report.py "$@"
