#!/usr/bin/env bash
# Builds the Debian packages, installs them into a fresh Debian and lets its systemd, in a container, run the server: as installed, and with
# certificates and keys. Then the client library: a program of another project finds and links the protocol.
#
#   tests/deploy/package_test.sh [--no_build]    --no_build: the packages of the last run
#
# Needs root, namespaces, a network for Debian's packages, and of those packages: debootstrap podman runc openssl systemd. lintian is used if
# it is there. Everything lies in build/package and build/package-test.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
. deploy/common.sh
. tests/deploy/containers.sh
build=1
case ${1:-} in
  '') ;;
  --no_build) build= ;;
  -h | --help) show_help "$self"; exit 0 ;;
  *) die "unknown argument '$1' (see --help)" ;;
esac
((EUID == 0)) || die "needs root for the chroot"
for tool in debootstrap dpkg-deb podman runc openssl systemd-analyze; do
  command -v "$tool" > /dev/null || die "'$tool' is missing"
done

work=$PWD/build/package-test
root=$work/root
machine=
finish() {
  [[ -z $machine ]] || podman rm --force --time 0 "$machine" > /dev/null 2>&1 || true
  ! mountpoint --quiet "$root/proc" || umount "$root/proc"
}
trap finish EXIT
mkdir -p "$work"
containers "$work"

step "Build the packages"
if [[ -n $build ]]; then
  rm -f build/package/*.deb
  { cmake --preset package -DFEWBIT_CUDA=OFF && cmake --build --preset package --parallel "$(parallel_jobs)"; } > "$work/build.log" 2>&1 ||
    { tail -n 40 "$work/build.log" >&2; die "the build failed ($work/build.log)"; }
fi
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
cp build/package/fewbit-{server,client,tools,demo-model}_*.deb "$root/root/"
in_root() { chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"; }
# apt fetches what they depend on; dpkg installs them.
{ in_root apt-get update && in_root sh -c 'apt-get install --yes --no-install-recommends systemd /root/fewbit-*.deb'; } > "$work/install.log" 2>&1 ||
  { tail -n 40 "$work/install.log" >&2; die "the installation failed"; }
for name in server client tools demo-model; do
  expect "fewbit-$name" "$(in_root dpkg-query --show --showformat='${Status}' "fewbit-$name")" "install ok installed"
done
for program in fewbit-server fewbit-client fewbit-quantize fewbit-tune fewbit-eval fewbit-plan; do
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

step "Under systemd"
port=18133
flags=$root/etc/fewbit/server.flags
printf -- '--port=%s\n--metrics_port=18134\n--threads=1\n' "$port" >> "$flags" # an administrator's change
umount "$root/proc"
machine=$(podman run --detach --privileged --systemd=always --network=host --rootfs "$root" /lib/systemd/systemd)
on() { podman exec "$machine" "$@"; }
# As on a real machine, where systemd finds nothing mounted: it hands credentials to services by way of shared mounts.
on mount --make-rshared /
started() { # started WHAT CLIENT_FLAG...
  on systemctl daemon-reload
  on systemctl restart fewbit-server
  on fewbit-client --address="localhost:$port" --health --wait_ready=60 "${@:2}" || { on journalctl --no-pager --unit=fewbit-server >&2; die "not ready: $1"; }
  say "ok: the service starts: $1"
}
started "as installed"
process=$(on systemctl show --property=MainPID --value fewbit-server)
expect "the process's user is not root" "$(on awk '$1 == "Uid:" {print ($2 > 60000)}' "/proc/$process/status")" 1
expect "its capabilities" "$(on awk '$1 ~ /^Cap(Eff|Prm|Bnd):/ {printf "%s", $2}' "/proc/$process/status")" 000000000000000000000000000000000000000000000000
expect "its seccomp mode: a filter" "$(on awk '$1 == "Seccomp:" {print $2}' "/proc/$process/status")" 2
expect "a completion" "$(on fewbit-client --address="localhost:$port" --temperature=0 --max_new_tokens=8 --quiet "Once upon a time")" "?*"

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout "$root/etc/fewbit/tls.key" -out "$root/etc/fewbit/tls.crt" \
  -subj /CN=fewbit -addext subjectAltName=DNS:localhost 2> /dev/null
openssl rand -hex 32 > "$root/etc/fewbit/acme.key"
echo "acme:$(tr -d '\n' < "$root/etc/fewbit/acme.key" | sha256sum | cut -c 1-64)" > "$root/etc/fewbit/api-keys"
chmod 600 "$root"/etc/fewbit/{tls.key,acme.key,api-keys}
on install -D -m 644 /usr/share/doc/fewbit-server/examples/tls.conf /etc/systemd/system/fewbit-server.service.d/tls.conf
sed -n 's/^#   --/--/p' "$root/usr/share/doc/fewbit-server/examples/tls.conf" >> "$flags"
started "with the credentials of examples/tls.conf" --tls_ca=/etc/fewbit/tls.crt
ask() { on fewbit-client --address="localhost:$port" --tls_ca=/etc/fewbit/tls.crt --temperature=0 --max_new_tokens=8 --quiet "$@" "Once upon a time" 2>&1; }
expect "a completion with the key" "$(ask --api_key_file=/etc/fewbit/acme.key)" "?*"
expect "an answer without a key" "$(ask || true)" "*UNAUTHENTICATED*"
on install -D -m 644 /usr/share/doc/fewbit-server/examples/gpu.conf /etc/systemd/system/fewbit-server.service.d/gpu.conf
started "with the devices of examples/gpu.conf, which are not there" --tls_ca=/etc/fewbit/tls.crt
on systemctl stop fewbit-server
expect "how it ended" "$(on systemctl show --property=Result --value fewbit-server)" success
expect "its last word" "$(on journalctl --no-pager --unit=fewbit-server --output=cat --grep=drained | tail -n 1)" "*drained in*"

step "Install again, remove"
on sh -c 'dpkg --install /root/fewbit-server_*.deb' > "$work/again.log" 2>&1 || die "the second installation failed: $work/again.log"
grep -q "^--port=$port\$" "$flags" || die "the administrator's flags are lost"
say "ok: the administrator's flags are kept"
on systemctl start fewbit-server
on dpkg --purge fewbit-server fewbit-client fewbit-tools fewbit-demo-model > "$work/purge.log" 2>&1 || die "purging failed: $work/purge.log"
expect "the service after the removal" "$(on systemctl is-active fewbit-server || true)" inactive
rm -r "$root/etc/fewbit" "$root/etc/systemd/system/fewbit-server.service.d" # the administrator's own files
left=$(find "$root/usr" "$root/etc" -name '*fewbit*')
expect "what is left after purging" "'$left'" "''"
podman rm --force --time 0 "$machine" > /dev/null
machine=

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
