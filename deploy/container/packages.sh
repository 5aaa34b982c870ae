#!/usr/bin/env bash
# A build stage's packages and SentencePiece.
set -euo pipefail
cd "$(dirname "$0")/../.."
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends ccache
deploy/setup.sh
