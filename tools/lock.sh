#!/usr/bin/env bash
# Writes requirements/lock-DISTRO.txt from the pinned requirements, with the hashes of PyPI. `make lock` runs it;
# pyproject.toml holds the settings of uv.
# A version that a lock has already stays, unless a requirement says otherwise; UPGRADE=1 takes the newest.
set -euo pipefail
cd "$(dirname "$0")/../requirements"
for ros in ros-*.txt; do
  uv pip compile --quiet ${UPGRADE:+--upgrade} --output-file "lock-${ros#ros-}" \
    base.txt engines.txt evaluation.txt tuning.txt dev.txt docs.txt "$ros" > /dev/null
done
