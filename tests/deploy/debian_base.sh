#!/usr/bin/env bash
# Sourced by container_test.sh and package_test.sh.

# debian_base: prints the path of a tar archive of a minimal Debian 12, which it makes once. Needs root, debootstrap and a network.
debian_base() {
  local archive=$PWD/build/debian-base.tar folder
  if [[ ! -f $archive ]]; then
    folder=$(mktemp -d "$PWD/build/debian-base.XXXXXX")
    if ! debootstrap --variant=minbase bookworm "$folder/root" > "$folder/log" 2>&1; then
      tail "$folder/log" >&2
      return 1
    fi
    tar -C "$folder/root" -cf "$folder/base.tar" .
    mv "$folder/base.tar" "$archive"
    rm -rf "$folder"
  fi
  printf '%s\n' "$archive"
}

# expect WHAT ACTUAL PATTERN: dies unless ACTUAL is like the bash PATTERN.
expect() {
  # shellcheck disable=SC2053
  [[ $2 == $3 ]] || die "$1 is '$2', not '$3'"
  say "ok: $1 is $2"
}
