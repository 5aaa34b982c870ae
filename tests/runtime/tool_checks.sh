#!/bin/sh
# For tests of the offline programs, which source it with $source set: a golden checkpoint $golden, a directory $dir that goes
# at the end, and checks that count $failures.
# shellcheck disable=SC2034,SC2154  # source comes from who sources this, golden goes there
golden=$source/tests/golden/llama2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failures=0

fail() {
  echo "FAILED: $1" >&2
  failures=$((failures + 1))
}

# refuses TEXT COMMAND...: exits 1 with TEXT on stderr and nothing on stdout
refuses() {
  text=$1
  shift
  "$@" > "$dir/stdout" 2> "$dir/stderr"
  code=$?
  [ $code -eq 1 ] || fail "exit $code instead of 1: $*"
  grep -qF -- "$text" "$dir/stderr" || { fail "no \"$text\" from: $*"; cat "$dir/stderr" >&2; }
  [ ! -s "$dir/stdout" ] || fail "output despite an error: $*"
}
