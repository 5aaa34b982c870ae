#!/usr/bin/env bash
# Builds the container image with its labels: version, commit and source.
#
#   deploy/container/build.sh [cpu|cuda|test] [--tag=NAME:TAG] [--engine=docker|podman|buildah] [-- ARGUMENT...]
#
#   --tag      default: fewbit:VERSION-cpu or fewbit:VERSION-cuda
#   --engine   default: the first of docker, podman and buildah that is installed
#   ARGUMENT   is handed on, e.g. --build-arg=CPU_BASE=registry.example.com/debian:bookworm-slim
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
. deploy/common.sh

target=cpu tag='' engine='' rest=()
while (($#)); do
  case $1 in
    cpu | cuda | test) target=$1 ;;
    --tag=*) tag=${1#*=} ;;
    --engine=*) engine=${1#*=} ;;
    --) shift; rest=("$@"); break ;;
    -h | --help) show_help "$self"; exit 0 ;;
    *) die "unknown argument '$1' (see --help)" ;;
  esac
  shift
done
if [[ -z $engine ]]; then
  for name in docker podman buildah; do
    command -v "$name" > /dev/null && engine=$name && break
  done
  [[ -n $engine ]] || die "none of docker, podman and buildah is installed"
fi
version=$(sed -n 's/^project(fewbit VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
# The build context has no .git: the commit comes along as an argument.
commit=$(git --no-optional-locks describe --always --abbrev=12 --dirty '--exclude=*' 2> /dev/null) || commit=unknown
source=$(git config --get remote.origin.url 2> /dev/null) || source=
exec "$engine" build --target "$target" --tag "${tag:-fewbit:$version-$target}" \
  --build-arg "VERSION=$version" --build-arg "COMMIT=$commit" --build-arg "SOURCE=$source" "${rest[@]}" .
