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

# containers DIR: settings for buildah, podman and runc, with storage of its own in DIR: images of this machine are neither seen nor changed.
containers() {
  mkdir -p "$1/tmp"
  cat > "$1/storage.conf" << TEXT
[storage]
driver = "overlay"
graphroot = "$1/storage"
runroot = "$1/run"
TEXT
  cat > "$1/containers.conf" << TEXT
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=10000:10000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
TEXT
  export CONTAINERS_STORAGE_CONF=$1/storage.conf CONTAINERS_CONF=$1/containers.conf TMPDIR=$1/tmp
}
