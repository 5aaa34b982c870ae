#!/usr/bin/env bash
# A CycloneDX bill of materials on standard output: fewbit, the named packages as dpkg knows them, and SentencePiece, which is linked
# in.
#
#   deploy/container/sbom.sh VERSION PACKAGE...
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/../.."
. deploy/common.sh
case ${1:-} in
  -h | --help) show_help "$self"; exit 0 ;;
  '') die "no version (see --help)" ;;
esac
version=$1
shift
distribution=$(. /etc/os-release && echo "$ID")
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")

# component NAME VERSION ARCHITECTURE: a package of the distribution as a JSON object. The characters of names and versions need no
# escaping but for + and : in the address.
component() {
  local address=${2//+/%2B}
  address=${address//:/%3A}
  printf '{"type": "library", "name": "%s", "version": "%s", "purl": "pkg:deb/%s/%s@%s?arch=%s&distro=%s"}' \
    "$1" "$2" "$distribution" "${1//+/%2B}" "$address" "$3" "$codename"
}

read -r _ spm < <(sed -n 2p build/deps/sentencepiece/stamp)
printf '{"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,\n'
printf ' "metadata": {"component": {"type": "application", "name": "fewbit", "version": "%s",\n' "$version"
printf '  "licenses": [{"license": {"id": "Apache-2.0"}}]}},\n "components": [\n  '
component sentencepiece "$spm" source
while read -r name number architecture; do
  printf ',\n  '
  component "$name" "$number" "$architecture"
done < <(dpkg-query --show --showformat='${Package} ${Version} ${Architecture}\n' "$@" | sort)
printf '\n ]}\n'
