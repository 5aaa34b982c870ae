#!/usr/bin/env bash
# Sourced by the scripts here and tests/run.sh; does nothing by itself.

say() { printf '%s\n' "$*"; }
step() { printf '\n==> %s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; exit 1; }

# show_help FILE: the comment at its top.
show_help() { sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$1"; }

# How many compilers may run: one per processor, two gigabytes each.
parallel_jobs() {
  local jobs
  jobs=$(awk '/MemAvailable/ {print int($2 / 2097152)}' /proc/meminfo)
  ((jobs <= $(nproc))) || jobs=$(nproc)
  ((jobs >= 1)) || jobs=1
  echo "$jobs"
}
