#!/usr/bin/env bash
# Builds the Debian packages, installs them into a fresh Debian, starts the server as its unit does and streams from it. Then the client
# library: a program of another project finds and links the protocol.
#
#   tests/deploy/package_test.sh
#
# Needs root (chroot), a network for Debian's packages, debootstrap, and for the unit systemd. lintian is used if it is there. Everything
# lies in build/package and build/package-test.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
. deploy/common.sh
. tests/deploy/debian_base.sh
case ${1:-} in
  '') ;;
  -h | --help) show_help "$self"; exit 0 ;;
  *) die "unknown argument '$1' (see --help)" ;;
esac
((EUID == 0)) || die "needs root for the chroot"
for tool in debootstrap dpkg-deb systemd-analyze; do
  command -v "$tool" > /dev/null || die "'$tool' is missing"
done

work=$PWD/build/package-test
root=$work/root
server=
finish() {
  [[ -z $server ]] || kill -KILL "$server" 2> /dev/null || true
  ! mountpoint --quiet "$root/proc" || umount "$root/proc"
}
trap finish EXIT
mkdir -p "$work"

step "Build the packages"
rm -f build/package/*.deb
{ cmake --preset package -DFEWBIT_CUDA=OFF && cmake --build --preset package --parallel "$(parallel_jobs)"; } > "$work/build.log" 2>&1 ||
  { tail -n 40 "$work/build.log" >&2; die "the build failed ($work/build.log)"; }
version=$(sed -n 's/^project(fewbit VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
for name in server client tools dev; do
  expect "the version of fewbit-$name" "$(dpkg-deb --field "build/package/fewbit-${name}_${version}_$(dpkg --print-architecture).deb" Version)" "$version"
done
expect "what fewbit-server depends on" "$(dpkg-deb --field build/package/fewbit-server_*.deb Depends)" "*libgrpc++*libssl*"
if command -v lintian > /dev/null; then
  # Whoever publishes packages says so with FEWBIT_PACKAGE_CONTACT; the changelog is ours, not Debian's.
  lintian --fail-on error --suppress-tags bogus-mail-host,root-in-contact,syntax-error-in-debian-changelog \
    --allow-root build/package/*.deb || die "lintian finds errors"
  say "ok: lintian finds no error"
fi

step "Install them into a fresh Debian"
rm -rf "$root"
mkdir -p "$root"
tar -C "$root" -xf "$(debian_base)"
mount -t proc proc "$root/proc"
cp /etc/resolv.conf "$root/etc/resolv.conf"
cp build/package/fewbit-{server,client,tools,demo-model}_*.deb "$root/tmp/"
in_root() { chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"; }
# apt fetches what they depend on; dpkg installs them.
{ in_root apt-get update && in_root sh -c 'apt-get install --yes --no-install-recommends /tmp/fewbit-*.deb'; } > "$work/install.log" 2>&1 ||
  { tail -n 40 "$work/install.log" >&2; die "the installation failed"; }
for name in server client tools demo-model; do
  expect "fewbit-$name" "$(in_root dpkg-query --show --showformat='${Status}' "fewbit-$name")" "install ok installed"
done
for program in fewbit-server fewbit-client fewbit-quantize fewbit-eval fewbit-plan; do
  expect "$program" "$(in_root $program --version | head -n 1)" "$program $version"
  page=$(gzip -dc "$root/usr/share/man/man1/$program.1.gz")
  while read -r flag; do
    [[ $page == *"\\fB\\-\\-$flag\\fR"* || $page == *"\\fB\\-\\-$flag="* ]] || die "the man page of $program lacks --$flag"
  done < <(in_root "$program" --help | sed -n 's/^  --\([a-z0-9_]*\).*/\1/p')
done
say "ok: every flag is in the man pages"

step "The unit"
unit=$root/usr/lib/systemd/system/fewbit-server.service
# As this machine's systemd sees it, with the program where it is.
sed "s|^ExecStart=|ExecStart=$root|" "$unit" > "$work/fewbit-server.service"
systemd-analyze verify --man=no "$work/fewbit-server.service" || die "systemd finds the unit wrong"
systemd-analyze security --offline=true --threshold=20 "$work/fewbit-server.service" > "$work/security.txt" ||
  die "the unit is exposed more than 2.0 of 10: $work/security.txt"
say "ok: $(tail -n 1 "$work/security.txt")"

step "Start the server as the unit does"
# An administrator's change: ports of the test.
port=18133
printf -- '--port=%s\n--metrics_port=18134\n--threads=1\n' "$port" >> "$root/etc/fewbit/server.flags"
read -r -a command < <(sed -n 's/^ExecStart=//p' "$unit")
say "${command[*]}"
chroot --userspec=65534:65534 "$root" "${command[@]}" > "$work/server.log" 2>&1 &
server=$!
in_root fewbit-client --address="127.0.0.1:$port" --health --wait_ready=60 || { cat "$work/server.log" >&2; die "the server is not ready"; }
expect "the process's user" "$(awk '$1 == "Uid:" {print $2}' "/proc/$server/status")" 65534
expect "a completion" "$(in_root fewbit-client --address="127.0.0.1:$port" --temperature=0 --max_new_tokens=8 --quiet "Once upon a time")" "?*"
kill -TERM "$server"
code=0
wait "$server" || code=$?
server=
expect "the exit status after SIGTERM" "$code" 0

step "Install again, remove"
in_root sh -c 'dpkg --install /tmp/fewbit-server_*.deb' > "$work/again.log" 2>&1 || die "the second installation failed: $work/again.log"
grep -q "^--port=$port\$" "$root/etc/fewbit/server.flags" || die "the administrator's flags are lost"
say "ok: the administrator's flags are kept"
in_root dpkg --purge fewbit-server fewbit-client fewbit-tools fewbit-demo-model > "$work/purge.log" 2>&1 || die "purging failed: $work/purge.log"
left=$(find "$root/usr" "$root/etc" -name '*fewbit*' -o -path "$root/etc/fewbit*")
expect "what is left after purging" "'$left'" "''"

step "A client of another project links the installed protocol"
rm -rf "$work/consumer" "$work/prefix"
DESTDIR=$work/prefix cmake --install build/package --component dev > /dev/null
mkdir -p "$work/consumer"
cat > "$work/consumer/CMakeLists.txt" << 'TEXT'
cmake_minimum_required(VERSION 3.25)
project(consumer CXX)
set(CMAKE_CXX_STANDARD 20)
find_package(fewbit REQUIRED)
add_executable(consumer main.cc)
target_link_libraries(consumer PRIVATE fewbit::proto)
TEXT
cat > "$work/consumer/main.cc" << 'TEXT'
#include <grpcpp/create_channel.h>

#include <cstdio>

#include "fewbit/v1/generation.grpc.pb.h"

int main() {
  auto stub = fewbit::v1::GenerationService::NewStub(grpc::CreateChannel("127.0.0.1:1", grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  fewbit::v1::GetModelInfoResponse info;
  std::printf("code %d\n", stub->GetModelInfo(&context, {}, &info).error_code());
}
TEXT
{ cmake -S "$work/consumer" -B "$work/consumer/build" -G Ninja -DCMAKE_PREFIX_PATH="$work/prefix/usr" &&
  cmake --build "$work/consumer/build"; } > "$work/consumer.log" 2>&1 || { tail -n 30 "$work/consumer.log" >&2; die "it does not build"; }
expect "what its call ends with where nobody serves" "$("$work/consumer/build/consumer")" "code 14"
say "The packages are fine."
