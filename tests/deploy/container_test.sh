#!/usr/bin/env bash
# Builds the container image for real and runs it the way Kubernetes does: not root, without capabilities, on a read-only root. No Docker
# engine: buildah builds in chroots, podman and runc run. Needs root, namespaces (a privileged container or a machine of its own), a network
# for Debian's packages, and of those packages: buildah podman runc catatonit debootstrap curl jq python3-yaml.
#
#   tests/deploy/container_test.sh [--target=cpu|cuda] [--toolkit=DIR] [--base=FILE] [--no_build]
#
#   --target    cuda builds with the CUDA kernels and runs the image without a GPU
#   --toolkit   where the CUDA toolkit is, for cuda (/usr/local/cuda)
#   --base      tar archive of a root to build on, e.g. Ubuntu 24.04 as NVIDIA's images have it (default: Debian 12 by debootstrap)
#   --no_build  the image of the last run
#
# Everything lies in build/container, and stays for the next run; --target=cpu downloads about 300 MB the first time.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
. deploy/common.sh
. tests/deploy/containers.sh

target=cpu toolkit=/usr/local/cuda base_file='' build=1
for argument in "$@"; do
  case $argument in
    --target=cpu | --target=cuda) target=${argument#*=} ;;
    --toolkit=*) toolkit=${argument#*=} ;;
    --base=*) base_file=${argument#*=} ;;
    --no_build) build= ;;
    -h | --help) show_help "$self"; exit 0 ;;
    *) die "unknown argument '$argument' (see --help)" ;;
  esac
done
((EUID == 0)) || die "needs root: chroots, mounts and namespaces"
for tool in buildah podman runc catatonit debootstrap curl jq; do
  command -v "$tool" > /dev/null || die "'$tool' is missing: apt-get install $tool"
done
[[ $target == cpu || -x $toolkit/bin/nvcc ]] || die "no CUDA toolkit in $toolkit"

work=$PWD/build/container
port=18033 metrics_port=18034
drain_seconds=1
limit_mb=150
containers "$work"
export BUILDAH_ISOLATION=chroot BUILDAH_LAYERS=true BUILDAH_FORMAT=docker

container=
finish() {
  [[ -z $container ]] || podman rm --force --time 0 "$container" > /dev/null 2>&1 || true
  podman pod rm --all --force --time 0 > /dev/null 2>&1 || true
}
trap finish EXIT

step "Base image"
if [[ -z $base_file ]]; then
  base=localhost/fewbit-test-base:debian
  podman image exists "$base" || podman import --quiet "$(debian_base)" "$base" > /dev/null
else
  base=localhost/fewbit-test-base:$(sha256sum "$base_file" | cut -c 1-12)
  podman image exists "$base" || podman import --quiet "$base_file" "$base" > /dev/null
fi

step "Build the target $target"
image=localhost/fewbit-test:$target
arguments=(--network=host --build-arg="CPU_BASE=$base" --build-arg="CUDA_BASE=$base" --build-arg="CUDA_RUNTIME=$base")
[[ $target == cpu ]] || arguments+=(--volume="$(realpath "$toolkit"):/usr/local/cuda:ro")
if [[ -n $build ]]; then
  begin=$SECONDS
  deploy/container/build.sh "$target" --engine=buildah --tag="$image" -- "${arguments[@]}" > "$work/build-$target.log" 2>&1 ||
    { tail -n 40 "$work/build-$target.log" >&2; die "the build failed ($work/build-$target.log)"; }
  say "built in $((SECONDS - begin)) s"
fi

step "What the image says of itself"
version=$(sed -n 's/^project(fewbit VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
label() { podman image inspect --format "{{index .Config.Labels \"org.opencontainers.image.$1\"}}" "$image"; }
expect "the user" "$(podman image inspect --format '{{.Config.User}}' "$image")" 65532:65532
expect "the label version" "$(label version)" "$version"
expect "the label licenses" "$(label licenses)" Apache-2.0
expect "the label title" "$(label title)" fewbit
expect "the stop signal" "$(podman image inspect --format '{{.Config.StopSignal}}' "$image")" SIGTERM
megabytes=$(($(podman image inspect --format '{{.Size}}' "$image") / 1000000))
say "size: $megabytes MB"
# The base of the cuda image here is not the one that is shipped.
[[ $target == cuda ]] || ((megabytes < limit_mb)) || die "the image has $megabytes MB, more than $limit_mb"

secure=(--network=host --read-only --read-only-tmpfs=false --cap-drop=all --security-opt=no-new-privileges --no-healthcheck)
shown=$(podman run --rm "${secure[@]}" "$image" --version)
expect "--version" "$shown" "fewbit-server $version"$'\n'"commit $(label revision), compiler *, CUDA *"
if [[ $target == cpu ]]; then
  if podman run --rm "${secure[@]}" --entrypoint /bin/sh "$image" -c true 2> /dev/null; then die "there is a shell"; fi
  say "ok: there is no shell"
fi

step "A bill of materials and licences"
mounted=$(podman image mount "$image")
jq --exit-status '.bomFormat == "CycloneDX" and ([.components[].name] | index("libc6") and index("sentencepiece") and any(startswith("libgrpc++")))
  and all(.components[]; .version != "" and (.purl | startswith("pkg:deb/")))' "$mounted/usr/share/doc/fewbit/sbom.cdx.json" > /dev/null ||
  die "the SBOM lacks something: $mounted/usr/share/doc/fewbit/sbom.cdx.json"
while read -r name; do
  [[ -s $mounted/usr/share/doc/$name/copyright || $name == sentencepiece ]] || die "no licence of $name"
done < <(jq -r '.components[].name' "$mounted/usr/share/doc/fewbit/sbom.cdx.json")
say "ok: $(jq '.components | length' "$mounted/usr/share/doc/fewbit/sbom.cdx.json") components with their licences"
podman image unmount "$image" > /dev/null

step "Run it"
client() { podman run --rm --interactive "${secure[@]}" --entrypoint /usr/bin/fewbit-client "$image" --address="127.0.0.1:$port" "$@"; }
container=$(podman run --detach "${secure[@]}" "$image" --model=/models/fewbit-demo-29m --port=$port --metrics_port=$metrics_port \
  --threads=1 --kv_memory=64M --drain_seconds=$drain_seconds)
client --health --wait_ready=60 || { podman logs "$container" >&2; die "the server is not ready"; }
mapfile -t probe < <(podman image inspect "$image" | jq -r '.[0].Healthcheck.Test[]')
expect "the image's health check" "${probe[*]}" "CMD /usr/bin/fewbit-client --health *"
probe() { podman exec --env="FLAGS_address=127.0.0.1:$1" "$container" "${probe[@]:1}" 2> /dev/null; }
probe $port || die "the image's health check fails"
! probe 1 || die "the image's health check finds a server where none is"
say "ok: the health probe, outside and in the container"
process=$(podman inspect --format '{{.State.Pid}}' "$container")
status() { awk -v key="$1:" '$1 == key {print $2}' "/proc/$process/status"; }
expect "the process's user" "$(status Uid)" 65532
expect "its capabilities" "$(status CapEff)$(status CapPrm)$(status CapBnd)" 000000000000000000000000000000000000000000000000
expect "no_new_privs" "$(status NoNewPrivs)" 1
expect "its root" "$(awk '$5 == "/" {print substr($6, 1, 2)}' "/proc/$process/mountinfo")" ro
expect "a completion" "$(client --temperature=0 --max_new_tokens=16 --quiet "Once upon a time")" "?*"
metrics=$(curl --silent --fail "http://127.0.0.1:$metrics_port/metrics")
expect "the metric build_info" "$(grep '^fewbit_build_info' <<< "$metrics")" "*version=\"$version\",commit=\"$(label revision)\"*"
expect "requests that ended well" "$(awk '/^fewbit_requests_total.*code="OK"/ {sum += $2} END {print sum}' <<< "$metrics")" 1

if [[ $target == cuda ]]; then
  code=0
  said=$(podman run --rm "${secure[@]}" "$image" --model=/models/fewbit-demo-29m --device=cuda 2>&1) || code=$?
  expect "the exit status of --device=cuda where there is no GPU" "$code" 1
  expect "its reason" "$(tail -n 1 <<< "$said")" "fewbit-server: --device=cuda: *"
fi

step "SIGTERM while a stream runs"
mkfifo "$work/tmp/stream.$$"
client --ignore_eos --max_new_tokens=1900 "Once upon a time" > "$work/tmp/stream.$$" 2> "$work/stream.err" < /dev/null &
streaming=$!
exec 3< "$work/tmp/stream.$$"
rm "$work/tmp/stream.$$"
read -r -n 1 -u 3 # it streams
begin=$SECONDS
kill -TERM "$process" # as the runtime does, but without its time to start: the stream would be over
text=$(cat <&3)
code=0
wait "$streaming" || code=$?
exit_code=$(podman wait "$container")
elapsed=$((SECONDS - begin))
expect "the client's exit status" "$code" 0
expect "what the client says" "$(tr '\n' ' ' < "$work/stream.err")" "*generated, ended by the server's shutdown*"
((${#text} > 100)) || die "the stream has only ${#text} characters"
expect "the server's exit status" "$exit_code" 0
# The last reads and the metrics thread may take 10 s.
((elapsed <= drain_seconds + 10)) || die "the drain took $elapsed s, --drain_seconds is $drain_seconds"
say "ok: drained in $elapsed s"
expect "the log's last line" "$(podman logs "$container" 2>&1 | tail -n 1)" "*drained in*"

if [[ $target == cpu ]]; then
  step "The Deployment of overlays/cpu-demo"
  PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 tests/deploy/kubernetes/deployment.py cpu-demo "$image" $port $metrics_port > "$work/deployment.yaml"
  podman play kube --network=host "$work/deployment.yaml" > "$work/play.log" 2>&1 || { cat "$work/play.log" >&2; die "podman cannot play it"; }
  container=$(podman ps --quiet --filter "ancestor=$image")
  client --health --wait_ready=60 || { podman logs "$container" >&2; die "the server is not ready"; }
  process=$(podman inspect --format '{{.State.Pid}}' "$container")
  expect "the process's user" "$(status Uid)" 65532
  expect "its capabilities" "$(status CapEff)$(status CapPrm)$(status CapBnd)" 000000000000000000000000000000000000000000000000
  expect "its seccomp mode: a filter" "$(status Seccomp)" 2
  expect "its root" "$(awk '$5 == "/" {print substr($6, 1, 2)}' "/proc/$process/mountinfo")" ro
  expect "a completion" "$(client --temperature=0 --max_new_tokens=16 --quiet "Once upon a time")" "?*"
  podman stop --time=90 "$container" > /dev/null
  expect "the server's exit status" "$(podman inspect --format '{{.State.ExitCode}}' "$container")" 0
  podman play kube --down "$work/deployment.yaml" > /dev/null
fi
say "The container is fine."
