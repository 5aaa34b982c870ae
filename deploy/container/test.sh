#!/usr/bin/env bash
# The test stage: what tests/run.sh calls "release", in the container.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/common.sh
apt-get update
deploy/setup.sh --tests
jobs=$(parallel_jobs)
cmake --preset release -DFEWBIT_CUDA=OFF
cmake --build --preset release --parallel "$jobs"
ctest --preset release --parallel "$jobs"
