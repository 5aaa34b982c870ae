#!/usr/bin/env bash
# Prepares a Debian 12 machine for building fewbit: the packages of deploy/apt-packages.txt and the SentencePiece library. Does
# nothing where everything is there already. Needs root, or a user who may use sudo, only if packages are missing.
#
#   deploy/setup.sh [--tests] [--no_install]    --tests: also what only tests need (tests/apt-packages.txt)
#                                               --no_install: fail instead of installing packages
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/.."

. deploy/common.sh

install=1
lists=(deploy/apt-packages.txt)
for argument in "$@"; do
  case $argument in
    --no_install) install= ;;
    --tests) lists+=(tests/apt-packages.txt) ;;
    -h | --help) show_help "$self"; exit 0 ;;
    *) die "unknown argument '$argument' (see --help)" ;;
  esac
done

mapfile -t wanted < <(sed 's/#.*//' "${lists[@]}" | tr -d ' \t' | grep .)
if ! command -v apt-get > /dev/null; then
  die "This machine has no apt-get. Install what ${lists[*]} name by the means of your system;
server/sentencepiece.sh --dsc FILE builds the last piece from Debian's source package."
fi
missing=()
for package in "${wanted[@]}"; do
  status=$(dpkg-query -W -f='${Status}' "$package" 2> /dev/null) || status=
  [[ $status == "install ok installed" ]] || missing+=("$package")
done

if ((${#missing[@]})); then
  say "Missing packages: ${missing[*]}"
  command="apt-get install --no-install-recommends ${missing[*]}"
  [[ -n $install ]] || die "Install them:  $command"
  as_root=()
  if [[ $EUID -ne 0 ]]; then
    command -v sudo > /dev/null || die "Installing them needs root, and there is no sudo here. As root, run:
  apt-get update && $command"
    as_root=(sudo)
    say "Installing them with sudo."
  fi
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  # An unattended apt asks nothing; its chatter is shown only if it fails.
  if ! { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q update &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends \
      "${missing[@]}"; } > "$log" 2>&1; then
    cat "$log" >&2
    die "apt-get failed (see above)."
  fi
  say "Installed ${#missing[@]} packages."
fi

server/sentencepiece.sh
