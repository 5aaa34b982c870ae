#!/usr/bin/env bash
# Builds server and client and lays out the final image. Runs in a build stage of the Dockerfile, on Debian or Ubuntu.
#
#   deploy/container/image.sh --dest=DIR [--cuda=OFF|ON] [--commit=COMMIT] [--build=DIR]
#
#   DIR/root  the programs, the libraries they are linked to, the demo model, licences and a bill of materials
#   DIR/libc  the C library and its loader, for an image without a base, with the few files of /etc it reads
#
#   --cuda    with the CUDA kernels; needs a toolkit in /usr/local/cuda
#   --commit  what --version and build_info call the commit
#   --build   build directory
#
# The libraries lie beside the distribution's places, in /usr/lib/fewbit, and the programs find them by their RPATH: so the image's base may
# be anything with a C library. That one and its loader cannot move.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
. deploy/common.sh

dest='' cuda=OFF commit='' build=build/image
for argument in "$@"; do
  case $argument in
    --dest=*) dest=${argument#*=} ;;
    --cuda=*) cuda=${argument#*=} ;;
    --commit=*) commit=${argument#*=} ;;
    --build=*) build=${argument#*=} ;;
    -h | --help) show_help "$self"; exit 0 ;;
    *) die "unknown argument '$argument' (see --help)" ;;
  esac
done
[[ -n $dest ]] || die "no --dest"
[[ ! -e $dest ]] || die "$dest exists"
root=$dest/root libc=$dest/libc

cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/usr -DFEWBIT_TESTS=OFF -DFEWBIT_WERROR=OFF \
  -DFEWBIT_CUDA="$cuda" -DFEWBIT_COMMIT="$commit" \
  -DCMAKE_INSTALL_RPATH=/usr/lib/fewbit -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags
cmake --build "$build" --parallel "$(parallel_jobs)" --target fewbit-server fewbit-client
for component in server client; do
  DESTDIR=$root cmake --install "$build" --component "$component" --strip
done
# A container has no service manager.
rm -r "$root/usr/lib/systemd" "$root/usr/share/doc"/*/examples "$root/etc/fewbit"
install -d "$root/models"
cp -R deploy/models/fewbit-demo-29m "$root/models/"
install -D -m 644 LICENSE "$root/usr/share/doc/fewbit/LICENSE"

# Of every library that the programs load: its package, and where it goes.
declare -A packages=()
add_library() {
  local path=$1 package
  package=$(dpkg-query --search "$path" "$(realpath "$path")" "/usr$path" 2> /dev/null | sed -n '/^diversion by /d; s/: .*//p' | head -n 1) || true
  [[ -n $package ]] || die "no package has $path"
  packages[$package]=1
  if [[ $package == libc6:* ]]; then
    install -D -m 755 "$(realpath "$path")" "$libc$path"
  else
    install -D -m 644 "$(realpath "$path")" "$root/usr/lib/fewbit/$(basename "$path")"
  fi
}
# Debian has /lib and /lib64 as links into /usr.
install -d "$libc/usr/lib" "$libc/usr/lib64"
ln -s usr/lib "$libc/lib"
ln -s usr/lib64 "$libc/lib64"
mapfile -t libraries < <(ldd "$root/usr/bin/fewbit-server" "$root/usr/bin/fewbit-client" | awk '$2 == "=>" {print $3} $1 ~ /^\// && NF == 2 {print $1}' | sort -u)
((${#libraries[@]})) || die "ldd names no library"
for library in "${libraries[@]}"; do
  add_library "$library"
done

install -d -m 1777 "$libc/tmp"
install -d "$libc/etc"
echo 'fewbit:x:65532:65532:fewbit:/:/usr/sbin/nologin' > "$libc/etc/passwd"
echo 'fewbit:x:65532:' > "$libc/etc/group"
echo 'hosts: files dns' > "$libc/etc/nsswitch.conf"

# Licences and a bill of materials (CycloneDX) of what is from the distribution. SentencePiece is linked in.
for package in "${!packages[@]}"; do
  install -D -m 644 "/usr/share/doc/${package%%:*}/copyright" "$root/usr/share/doc/${package%%:*}/copyright"
done
install -D -m 644 build/deps/sentencepiece/LICENSE "$root/usr/share/doc/sentencepiece/LICENSE"
deploy/container/sbom.sh "$("$root/usr/bin/fewbit-server" --version | awk 'NR == 1 {print $2}')" "${!packages[@]}" \
  > "$root/usr/share/doc/fewbit/sbom.cdx.json"
du -sh "$root" "$libc"
