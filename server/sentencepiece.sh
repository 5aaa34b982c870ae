#!/usr/bin/env bash
# Builds SentencePiece as a static library against the system's protobuf, into build/deps/sentencepiece.
#
#   server/sentencepiece.sh [--dest DIR] [--dsc FILE] [--force]
#
# Why not simply link Debian's libsentencepiece: it exports a bundled protobuf 3.14 whose symbols collide with the protobuf 3.21 that
# gRPC uses, and a program with both crashes before main. The distribution's own source package, built with
# SPM_USE_BUILTIN_PROTOBUF=OFF, has no second protobuf; so do AddressSanitizer builds, which refuse the dlopen(RTLD_DEEPBIND) way around.
# The source comes through apt with the repositories and keys that this machine trusts anyway, so the version is the distribution's and
# the checksums are apt's to verify; nothing under /etc/apt and nothing outside DIR is changed, and root is not needed.
#
# --dsc FILE builds from a source package that is there already (no network). The result is kept and reused until protobuf changes.
# Needs: dpkg-dev, cmake, ninja-build, g++, protobuf-compiler, libprotobuf-dev (deploy/apt-packages.txt).
set -euo pipefail

say() { printf 'sentencepiece: %s\n' "$*"; }
die() { printf 'sentencepiece: %s\n' "$*" >&2; exit 1; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dest=$root/build/deps/sentencepiece
dsc=
force=
while (($#)); do
  case $1 in
    --dest) dest=${2:?--dest needs a directory}; shift 2 ;;
    --dsc) dsc=$(realpath -e "${2:?--dsc needs a file}"); shift 2 ;;
    --force) force=1; shift ;;
    -h | --help) sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "unknown argument '$1' (see --help)" ;;
  esac
done

for tool in dpkg-source patch cmake ninja protoc; do
  command -v "$tool" > /dev/null || die "'$tool' is missing: install the packages of deploy/apt-packages.txt first"
done
stamp="protobuf $(protoc --version | awk '{print $2}')"
if [[ -z $force && -f $dest/stamp && $(head -n 1 "$dest/stamp") == "$stamp" ]]; then
  say "$(sed -n 2p "$dest/stamp") is in $dest already"
  exit 0
fi

mkdir -p "$(dirname "$dest")"
work=$(mktemp -d "$(dirname "$dest")/sentencepiece-build.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Asks for the source package where the machine would get the binary package: the same mirror, suite and key.
download() {
  local line uri suite component key options=()
  line=$(apt-cache madison libsentencepiece-dev 2> /dev/null | grep ' Packages$' | head -n 1) || true
  [[ -n $line ]] || die "apt does not know libsentencepiece-dev; run 'apt-get update' as root (Ubuntu: enable universe), or pass --dsc FILE"
  read -r uri component _ <<< "${line##*| }"
  suite=${component%/*}
  component=${component##*/}
  key=$(apt-get indextargets --format '$(SIGNED_BY)' 'Created-By: Packages' "Release: $suite" \
    "Component: $component" "Repo-URI: ${uri%/}/" | head -n 1)
  [[ -f $key ]] && options=("signed-by=$key")
  say "downloading the source package from $uri $suite/$component"
  echo "deb-src ${options:+[${options[*]}] }$uri $suite $component" > "$work/sources.list"
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/source"
  # apt downloads as user _apt when it is run by root, and complains where that user cannot write.
  if [[ $EUID -eq 0 ]] && id _apt > /dev/null 2>&1; then
    chmod 755 "$work"
    chown -R _apt "$work/lists" "$work/cache" "$work/source"
  fi
  local apt=(apt-get -q -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Acquire::Retries=3)
  if ! { "${apt[@]}" update -o APT::Update::Error-Mode=any && cd "$work/source" &&
    "${apt[@]}" source --download-only sentencepiece; } > "$work/download.log" 2>&1; then
    cat "$work/download.log" >&2
    die "the download failed (see above); without a network pass --dsc FILE"
  fi
  cd "$root"
  dsc=$(echo "$work"/source/sentencepiece_*.dsc)
}
[[ -n $dsc ]] || download

name=$(basename "$dsc" .dsc)
say "building ${name/_/ } (a minute on two cores)"
# Debian builds shared libraries only, by a patch: it is taken back. One header names the bundled protobuf by its path: that path is
# made to mean the system's. The option for the system's has another name from 0.2 on (Ubuntu 24.04): each version ignores the other's.
# Every step is chained, because bash ignores 'set -e' in a function that is tested.
build() {
  local no_static=debian/patches/disable-static-library.patch system launcher=
  system=$(find /usr/include /usr/local/include -path '*/google/protobuf/message_lite.h' -print -quit 2> /dev/null)
  command -v ccache > /dev/null && launcher=ccache
  dpkg-source --no-copy -x "$dsc" "$work/tree" && cd "$work/tree" &&
    { [[ ! -f $no_static ]] || patch --reverse --strip 1 < "$no_static"; } &&
    rm -rf third_party/protobuf-lite/google &&
    ln -s "${system%/protobuf/message_lite.h}" third_party/protobuf-lite/google &&
    cmake -G Ninja -S . -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_POSITION_INDEPENDENT_CODE=ON \
      -DCMAKE_CXX_COMPILER_LAUNCHER="$launcher" -DSPM_ENABLE_SHARED=OFF -DSPM_USE_BUILTIN_PROTOBUF=OFF -DSPM_PROTOBUF_PROVIDER=package \
      -DSPM_ENABLE_TCMALLOC=OFF &&
    cmake --build "$work/build" --target sentencepiece-static
}
if ! (build) > "$work/build.log" 2>&1; then
  tail -n 40 "$work/build.log" >&2
  die "the build failed (see above)"
fi

mkdir -p "$work/result/lib" "$work/result/include"
cp "$work/build/src/libsentencepiece.a" "$work/result/lib/"
cp "$work/tree/src/sentencepiece_processor.h" "$work/build/src/sentencepiece_model.pb.h" "$work/result/include/"
cp "$work/tree/LICENSE" "$work/result/"
printf '%s\n%s\n' "$stamp" "${name/_/ }" > "$work/result/stamp"
rm -rf "$dest"
mv "$work/result" "$dest"
say "${name/_/ } is in $dest"
